"""Keras 3 on JAX: compile and fit."""

import keras
from keras import layers


def train(model, optimizer, data, report):
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    done = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda _, logs: report(logs["loss"], model.predict_on_batch)
    )
    epochs, _, batch_size = data.order.shape
    model.fit(data.x, data.y, batch_size=batch_size, epochs=epochs, callbacks=[done], verbose=0)
    return model.count_params()


def adam():
    return keras.optimizers.Adam(1e-3, epsilon=1e-8)


def mlp(data, seed, report):
    keras.utils.set_random_seed(seed)
    first, second, classes = data.widths.tolist()
    dense = lambda width, activation=None: layers.Dense(
        width, activation, kernel_initializer="he_normal"
    )
    inputs = keras.Input(data.x.shape[1:])
    model = keras.Sequential([inputs, dense(first, "relu"), dense(second, "relu"), dense(classes)])
    return train(model, adam(), data, report)


digits = large = mlp


def cnn(data, seed, report):
    keras.utils.set_random_seed(seed)
    conv = lambda width: layers.Conv2D(
        width, 3, padding="same", activation="relu", kernel_initializer="he_normal"
    )
    model = keras.Sequential(
        [
            keras.Input(data.x.shape[1:]),
            conv(32),
            conv(64),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(10, kernel_initializer="he_normal"),
        ]
    )
    return train(model, adam(), data, report)


def normal(deviation=0.02):
    return keras.initializers.RandomNormal(stddev=deviation)


class Positions(layers.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], initializer=normal())

    def call(self, x):
        return x + self.table


def block(x, heads, small):
    d = x.shape[-1]
    h = layers.LayerNormalization(epsilon=1e-5)(x)
    attend = layers.MultiHeadAttention(heads, d // heads, kernel_initializer=normal())
    attend.build(h.shape, h.shape)
    kernel = attend.output_dense.kernel
    kernel.assign(normal(small)(kernel.shape))
    x = x + attend(h, h, use_causal_mask=True)
    h = layers.LayerNormalization(epsilon=1e-5)(x)
    h = layers.Dense(4 * d, keras.activations.gelu, kernel_initializer=normal())(h)
    return x + layers.Dense(d, kernel_initializer=normal(small))(h)


def gpt(data, seed, report, depth=4, d=128, heads=4, vocabulary=256):
    keras.utils.set_random_seed(seed)
    table = layers.ReversibleEmbedding(vocabulary, d, embeddings_initializer=normal())
    tokens = keras.Input(data.x.shape[1:], dtype="int32")
    x = Positions()(table(tokens))
    for _ in range(depth):
        x = block(x, heads, 0.02 / (2 * depth) ** 0.5)
    logits = table(layers.LayerNormalization(epsilon=1e-5)(x), reverse=True)
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.1, epsilon=1e-8)
    return train(keras.Model(tokens, logits), optimizer, data, report)
