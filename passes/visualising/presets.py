"""How an image is climbed: step rules, regularisers and their amounts; and the presets of the literature by name.

Amounts are in the unit in which the range of valid pixels is 1 wide, whatever the normalisation. The rates of Yosinski
et al. (2015), table 1, are for pixels from 0 to 255; a network without normalisation gives activations that grow with
its pixels, so a constant rate of 100 there is 100 / 255 here.

    fast            few steps of a fixed length; our default
    yosinski_a..d   the four of the paper; `yosinski_c` is the one of its figures
    class_adaptive  what class-adaptive pruning (Qin et al. 2018) was reproduced with
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Rule = Literal["constant", "progress", "normalized"]

CAP: Final = 100.0 / 255
"""The largest rate of `progress`, so that a filter with hardly any gradient doesn't jump."""
_NOISE: Final = 10.0 / 255
"""The standard deviation of the noise that the toolbox of Yosinski et al. starts from, 10 grey levels."""


@dataclass(frozen=True)
class Ascent:
    """How images are climbed; an amount of 0 switches a regulariser off."""

    steps: int
    rule: Rule
    rate: float
    """constant: what a gradient is multiplied by. progress: by how much a step should raise the activation, to first
    order. normalized: the root mean square of the first step over the image's pixels; steps
    become shorter evenly, to nothing behind the last."""
    decay: float = 0.0
    """The share of the image that goes with every step."""
    blur_width: float = 0.0
    """Pixels."""
    blur_every: int = 1
    """Steps from one blur to the next."""
    small_norm: float = 0.0
    """Per cent of the pixels."""
    small_contribution: float = 0.0
    """Per cent of the pixels."""
    pixel_range: bool = True
    """Whether images stay in the range of valid pixels."""
    noise: float = _NOISE
    """The standard deviation of the noise that is added to the mean image at the start; 0 for a constant image."""


PRESETS: Final[dict[str, Ascent]] = {
    "fast": Ascent(32, "normalized", 0.2, decay=0.02, blur_width=0.5, blur_every=4),
    "yosinski_a": Ascent(500, "progress", 2.0, blur_width=0.5, blur_every=4, small_norm=50),
    "yosinski_b": Ascent(750, "constant", 100.0 / 255, decay=0.3, small_norm=20),
    "yosinski_c": Ascent(1000, "constant", 100.0 / 255, decay=0.0001, blur_width=1.0, blur_every=4),
    "yosinski_d": Ascent(1000, "progress", 2.0, blur_width=0.5, blur_every=4, small_contribution=90),
    "class_adaptive": Ascent(1000, "constant", 0.14, blur_width=0.4, pixel_range=False, noise=0.0),
}
