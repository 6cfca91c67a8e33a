"""What docs/api.md shows, beside what came: the same keys, the same types, the same values.

Of values that depend on the machine, the clock or the model, only the type is compared.
"""

from __future__ import annotations

import re

# Names as JSON has them over HTTP; protobuf's JSON form writes `vanilla_reward` as `vanillaReward`.
VARYING = frozenset(
    {
        *("version", "model", "fingerprint", "device", "dtype", "sha256"),
        *("created_at", "at", "since", "device_seconds"),
        *("tokens", "truncated", "reward", "vanilla_reward"),
        *("bt", "gre", "kl", "total", "sigma", "gradient_norm", "reward_mean", "vanilla_mean"),
        *("spread_ratio", "rank_correlation"),
        *("u", "v", "ticket"),
        *("head_bt", "head_accuracy", "difference"),
        *("accuracy", "low", "high", "correct", "p_value"),
    }
)
_DECIMAL = re.compile(r"-?\d+(\.\d+)?e-?\d+|-?\d+\.\d+")
_CAPITAL = re.compile(r"(?<=[a-z])[A-Z]")


def masked(text):
    """A text with its decimal fractions taken out; whole numbers stay."""
    return _DECIMAL.sub("#.#", text)


def differences(shown, real, where="answer"):
    """What is unlike what the page shows, one sentence each."""
    if _kind(shown) != _kind(real):
        return [f"{where} is {real!r}, shown is {shown!r}"]
    if isinstance(shown, dict):
        found = [f"{where} has no key {key}" for key in shown.keys() - real.keys()]
        found += [f"{where}.{key} is not shown" for key in real.keys() - shown.keys()]
        for key in shown.keys() & real.keys():
            if not _varies(key) or isinstance(shown[key], dict | list):
                found += differences(shown[key], real[key], f"{where}.{key}")
            elif _kind(shown[key]) != _kind(real[key]):
                found.append(f"{where}.{key} is {real[key]!r}, shown is {shown[key]!r}")
        return found
    if isinstance(shown, list):
        if len(shown) != len(real):
            return [f"{where} has {len(real)} entries, shown are {len(shown)}"]
        return [
            one
            for place, pair in enumerate(zip(shown, real, strict=True))
            for one in differences(*pair, f"{where}[{place}]")
        ]
    if isinstance(shown, str):
        shown, real = masked(shown), masked(real)
    return [] if shown == real else [f"{where} is {real!r}, shown is {shown!r}"]


def _varies(key):
    return _CAPITAL.sub(lambda capital: f"_{capital[0].lower()}", key) in VARYING


def _kind(value):
    """JSON knows numbers, not ints and floats; true is none."""
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)
