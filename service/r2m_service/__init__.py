"""The R2M reward service: a frozen backbone, cross attention over policy states, versioned heads.

Layers, outermost first: `transports` → `application` → `domain`. `engine`, `modeling` and
`registry` are adapters of the application's ports; torch is imported in `modeling` and `engine`
only. `bootstrap` wires them.
"""
