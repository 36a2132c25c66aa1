"""Models of the reference study: a multilayer perceptron and two CNNs that differ in pooling.

The reference study is the one that this project started from, a slide deck with Keras models. The CNNs reproduce its
tables layer by layer (valid convolutions, 2x2 pooling). At 299 px and 100 classes they have 12,463,400 parameters; the
first convolution's 2,800 are frozen. It specifies no activation, no dropout rate and no width of the perceptron.
This project chose ReLU, 0.5 and 100.
"""

from torch import nn

WIDTH = 100
DROPOUT = 0.5


def feed_forward(classes: int, image_size: int) -> nn.Module:
    """Return a multilayer perceptron with three dense layers on the flattened pixels."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(3 * image_size * image_size, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, classes),
    )


def max_pooling_cnn(classes: int, image_size: int) -> nn.Module:
    """Return the reference study's CNN with max pooling."""
    return _cnn(classes, image_size, nn.MaxPool2d)


def average_pooling_cnn(classes: int, image_size: int) -> nn.Module:
    """Return the reference study's CNN with average pooling."""
    return _cnn(classes, image_size, nn.AvgPool2d)


def feature_side(image_size: int) -> int:
    """Return the width of the last feature map, after three pairs of a 3x3 valid convolution and 2x2 pooling."""
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
