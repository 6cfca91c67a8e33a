"""8-bit hidden states whose channel scales are fixed once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from r2m.tensors import TensorValue


class ChannelScales:
    """Static scales of a policy's channels, for hidden states sent in 8 bits.

        scales = ChannelScales.of(states_of_a_few_samples)
        Sample("a", prompt, response, scales.quantize(states))

    A state becomes h[s, p] = q[s, p] · token[s] · channel[p], with token[s] such that no number is
    clipped. Scales that are fixed make a reward depend on the states alone, not on what else is in
    the sample; they stay good while the policy's channels keep their relative sizes.

    Args:
        channel: float32 [D_p], positive.

    Raises:
        ValueError: other numbers.
    """

    def __init__(self, channel: Any) -> None:
        import numpy as np

        self.channel: npt.NDArray[np.float32] = np.array(channel, np.float32)
        if self.channel.ndim != 1 or not (np.isfinite(self.channel) & (self.channel > 0)).all():
            raise ValueError("channel scales are a vector of positive, finite numbers")

    @classmethod
    def of(cls, *states: Any) -> ChannelScales:
        """Scales from states of one or more samples: each channel's root mean square.

        Args:
            states: each [S, D_p]: numpy arrays, torch tensors of any device, or nested lists.

        Raises:
            ValueError: no states, or not finite.
        """
        import numpy as np

        from r2m.tensors import float32

        squares: Any = 0.0
        tokens = 0
        for one in states:
            values = float32(one)
            if len(values.shape) != 2:
                raise ValueError(f"states are [tokens, width], got shape {list(values.shape)}")
            total = (values**2).sum(0)
            squares = squares + np.asarray(total.cpu() if hasattr(total, "cpu") else total)
            tokens += len(values)
        if not tokens:
            raise ValueError("no states to take scales from")
        scale = np.sqrt(np.asarray(squares, np.float64) / tokens)
        # A channel that was silent here may speak later: it must not be lost.
        return cls(np.maximum(scale, FLOOR * scale.max() or 1.0))

    def quantize(self, states: Any) -> TensorValue:
        """States of one sample as a Sample takes them, in half the bytes of bfloat16.

        Args:
            states: [S, D_p]; a torch tensor is quantized where it lives.

        Raises:
            ValueError: another shape or width.
        """
        from r2m import int8
        from r2m.tensors import TensorValue, float32

        return TensorValue("int8", *int8.encode(float32(states), self.channel))


FLOOR = 1e-3
"""The least scale of a channel, as a share of the greatest one."""
