"""The models of the built-in tasks; preprocessing is inside, so training and later use can't drift apart."""

from typing import Any

import keras
from keras import layers

_CAFFE_MEAN_RGB = (123.68, 116.779, 103.939)  # of ImageNet, what the lab's VGG preprocessing subtracts


def chest_xray() -> Any:
    """A small convolutional net for X-rays of 224 × 224 gray values from 0 to 255; 85,186 parameters.

    Each image is normalized by its own mean and variance, which differ between hospitals. There are no batch
    statistics, because those of one hospital don't fit another (Hsieh et al. 2020).

    Returns:
        A compiled classifier of NORMAL and PNEUMONIA.
    """
    inputs = layers.Input((224, 224, 1))
    x = layers.AveragePooling2D(2)(inputs)
    x = layers.Rescaling(1 / 255)(x)
    for augmentation in _augmentations():
        x = augmentation(x)
    x = layers.LayerNormalization(axis=[1, 2, 3], center=False, scale=False)(x)
    x = layers.Conv2D(16, 5, strides=2, padding="same", activation="relu")(x)
    x = layers.MaxPooling2D(2)(x)
    for filters in (32, 64):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu", kernel_initializer="he_normal")(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(96, 3, padding="same", activation="relu", kernel_initializer="he_normal")(x)
    x = layers.Conv2D(32, 1, activation="relu")(x)
    x = layers.Dropout(0.4)(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x), name="chest_xray")
    optimizer = keras.optimizers.AdamW(0.0015, weight_decay=0.01)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def _augmentations() -> list[Any]:
    """What differs between two X-rays of one chest; these layers act in training only."""
    return [
        layers.RandomFlip("horizontal"),
        layers.RandomRotation(0.02, fill_mode="nearest"),
        layers.RandomZoom((-0.15, 0.15), (-0.15, 0.15), fill_mode="nearest"),
        layers.RandomTranslation(0.08, 0.08, fill_mode="nearest"),
    ]


def chest_xray_lab() -> Any:
    """The lab's model: 224 × 224 colour, two convolutions, 420,802 parameters.

    The lab subtracted ImageNet's mean in BGR order outside the model. Here it is the first layer, in RGB
    order: the same numbers in other channels, which a model that is trained from scratch can't tell.

    Returns:
        A compiled classifier of NORMAL and PNEUMONIA.
    """
    model = keras.Sequential(
        [
            layers.Input((224, 224, 3)),
            layers.Normalization(mean=_CAFFE_MEAN_RGB, variance=(1.0, 1.0, 1.0)),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(2, activation="softmax"),
        ],
        name="chest_xray_lab",
    )
    model.compile(keras.optimizers.Adam(0.0001), "categorical_crossentropy", metrics=["accuracy"])
    return model


def mnist() -> Any:
    """The CNN of McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks …", section 3.

    Returns:
        A compiled classifier of the ten digits, 28 × 28 gray values from 0 to 255.
    """
    model = keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(32, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 5, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(512, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ],
        name="mnist",
    )
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model
