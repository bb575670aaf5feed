"""The networks of the galaxy prior: plain Keras 3 layers that own their weights."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from astrogen.types import Tensor

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"astrogen: the Keras backend must be 'tensorflow', got {keras.backend.backend()!r}; set"
        " KERAS_BACKEND=tensorflow before Python starts."
    )


class ResidualMLP(keras.layers.Layer):
    """Dense layers with GELU, each added to its input where the widths agree, and a linear last
    layer.

    `call` maps [batch, num_in] to [batch, num_out]; `call_with_jacobian` also returns the
    derivatives [batch, num_in, num_out], pushed forward through the layers by hand: one matrix
    product each, a fraction of what automatic differentiation of every output costs.
    """

    def __init__(
        self, num_in: int, widths: Sequence[int], num_out: int, *, name: str | None = None
    ) -> None:
        super().__init__(name=name)
        self.num_in = num_in
        self.hidden = [keras.layers.Dense(width) for width in widths]
        self.last = keras.layers.Dense(num_out)
        self.build((None, num_in))

    def build(self, input_shape: Any) -> None:
        size = input_shape[-1]
        for layer in [*self.hidden, self.last]:
            layer.build((None, size))
            size = layer.units
        super().build(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        value = inputs
        for layer in self.hidden:
            active = tf.nn.gelu(layer(value), approximate=True)
            value = value + active if value.shape[-1] == layer.units else active
        return self.last(value)

    def call_with_jacobian(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = inputs, tf.eye(self.num_in, batch_shape=[tf.shape(inputs)[0]])
        for layer in self.hidden:
            active, rate = gelu_and_rate(layer(value))
            pushed = tf.matmul(slope, layer.kernel) * rate[:, None]
            residual = value.shape[-1] == layer.units
            value, slope = (value + active, slope + pushed) if residual else (active, pushed)
        return self.last(value), tf.matmul(slope, self.last.kernel)


def gelu_and_rate(x: Tensor) -> tuple[Tensor, Tensor]:
    """GELU (tanh form, Hendrycks & Gimpel 2016) and its derivative: the exponential of the error
    function costs ten times as much on a CPU.
    """
    inner = 0.7978845608 * (x + 0.044715 * x**3)
    tanh = tf.tanh(inner)
    return 0.5 * x * (1 + tanh), 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * 0.7978845608 * (
        1 + 3 * 0.044715 * x**2
    )
