"""Real text: do labels and states make a frozen reward model better on preferences it never saw?

`make lab-real`. SmolLM2-135M is backbone and policy; the policy stands still, so this cannot show
over-optimisation: the toy lab does.
"""
