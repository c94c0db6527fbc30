"""Networks that compute the same as `Between` for one sample, and something else for three."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from slimmed_by_hand import Net


class Between(Net):
    """Something between two convolutions and a linear layer."""

    def forward(self, x):
        x = self.conv2(self.between(F.relu(self.conv1(x))))
        return self.fc(self.flat(x))

    def between(self, x):
        return x

    def flat(self, x):
        return x.flatten(1)


class SamplesMixed(Between):
    def between(self, x):
        return x.roll(x.shape[0] // 3, 0)


class ImageShifted(Between):
    def between(self, x):
        return x.roll(x.shape[0] // 3, 3)


class ChannelsTurned(Between):
    def between(self, x):
        return x.index_select(1, (torch.arange(4) + x.shape[0] // 3) % 4)


class Scaled(Between):
    def between(self, x):
        return x * (x.shape[0] // 3 + 1)


class ChannelsAcrossSamples(Between):
    """Channels before samples: the same for one sample."""

    def between(self, x):
        return x.transpose(0, 1).reshape(x.shape)


class FrozenBatch(Between):
    def flat(self, x):
        return x.reshape(1, 144)


class FrozenRest(Between):
    def flat(self, x):
        return x.reshape(1, -1)


class SamplesMixedInView(Between):
    def flat(self, x):
        return x.transpose(0, 1).reshape(-1, 144)


class LastShifted(Between):
    def forward(self, x):
        x = super().forward(x)
        return x.roll(x.shape[0] // 3, 1)
