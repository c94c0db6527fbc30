"""PyTorch itself, in eager mode on the CPU: what a plan without an export is meant for; a target for `multiple_of`."""

from __future__ import annotations

from prunec.compiler.targets.base import Meter, Target


class Torch(Target):
    """Its convolutions are oneDNN's, whose blocked layouts hold 8 channels with AVX2 and 16 with AVX-512; the last
    block is padded with zeros. Measured (`benchmarks/README.md`): at equal MACs, multiples of 16 are faster than those
    of 8 with either."""

    name = "torch"
    multiple = 16

    def meter(self) -> Meter:
        """One thread of this machine's CPU."""
        from prunec.compiler.targets.torch_meter import TorchMeter  # noqa: PLC0415  (imports torch)

        return TorchMeter()
