"""The deck's own small networks: a three-layer feed-forward one and two CNNs that differ in pooling.

The CNNs repeat the deck's Keras tables layer by layer (valid convolutions, 2x2 pooling); at 299 px and
100 classes they have 12,463,400 parameters, of which the first convolution's 2,800 are frozen. The deck
names no activation, dropout share or width of the feed-forward network: ReLU, 0.5 and 100 are ours.
"""

from torch import nn

WIDTH = 100
DROPOUT = 0.5


def feed_forward(classes: int, image_size: int) -> nn.Module:
    """Three dense layers on the flattened pixels."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(3 * image_size * image_size, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, classes),
    )


def max_pooling_cnn(classes: int, image_size: int) -> nn.Module:
    """The deck's CNN with max pooling."""
    return _cnn(classes, image_size, nn.MaxPool2d)


def average_pooling_cnn(classes: int, image_size: int) -> nn.Module:
    """The deck's CNN with average pooling."""
    return _cnn(classes, image_size, nn.AvgPool2d)


def feature_side(image_size: int) -> int:
    """Return the width of the last feature map: three times a 3x3 valid convolution and 2x2 pooling."""
    side = image_size
    for _ in range(3):
        side = (side - 2) // 2
    return side


def _cnn(classes: int, image_size: int, pooling: type[nn.MaxPool2d] | type[nn.AvgPool2d]) -> nn.Module:
    first = nn.Conv2d(3, WIDTH, 3)
    first.requires_grad_(False)
    return nn.Sequential(
        first,
        nn.ReLU(),
        pooling(2),
        nn.Conv2d(WIDTH, WIDTH, 3),
        nn.ReLU(),
        pooling(2),
        nn.Conv2d(WIDTH, WIDTH, 3),
        nn.ReLU(),
        pooling(2),
        nn.Flatten(),
        nn.Linear(WIDTH * feature_side(image_size) ** 2, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Dropout(DROPOUT),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, classes),
    )
