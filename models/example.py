"""A textbook network with a size written into its `forward`, and the same network with that size wrong.

    conv1 64 - relu - pool 2 - conv2 64 - relu - pool 2 - view(-1, 64 * 8 * 8) - fc1 128 - relu - dropout - fc2

`example` hard-codes `64 * 8 * 8` on purpose: whoever removes a channel must rewrite the literal as well.
`faulty_example` says `64 * 4 * 4`, which runs and is wrong: `view` moves the surplus into the batch dimension, so
N images give 4N rows. A compiler must report that, not compile it.
"""

from __future__ import annotations

from torch import Tensor, nn


class Example(nn.Module):
    """The correct network, for 3x32x32 images."""

    def __init__(self, num_classes: int, flat: int = 64 * 8 * 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(flat, 128)
        self.dropout = nn.Dropout(0.5)
        self.fc2 = nn.Linear(128, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """`[N, 3, 32, 32]` -> `[N, 64, 8, 8]`."""
        x = self.pool(self.relu(self.conv1(x)))
        maps: Tensor = self.pool(self.relu(self.conv2(x)))
        return maps

    def head(self, x: Tensor) -> Tensor:
        """`[rows, flat]` -> `[rows, num_classes]`."""
        logits: Tensor = self.fc2(self.dropout(self.relu(self.fc1(x))))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, 32, 32]` -> `[N, num_classes]`."""
        return self.head(self.features(x).view(-1, 64 * 8 * 8))


class FaultyExample(Example):
    """The network with the wrong literal."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, flat=64 * 4 * 4)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, 3, 32, 32]` -> `[4N, num_classes]`: the fault."""
        return self.head(self.features(x).view(-1, 64 * 4 * 4))


def example(num_classes: int = 10) -> Example:
    """The network with the right literal in its `view`."""
    return Example(num_classes)


def faulty_example(num_classes: int = 10) -> FaultyExample:
    """The network whose `view` turns N images into 4N rows."""
    return FaultyExample(num_classes)
