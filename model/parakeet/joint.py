"""A transducer's joint: an encoder frame and the text so far → logits. NeMo's RNNTJoint, always float32."""

from model.arrays import Array
from model.layers import Layer, Linear
from model.parakeet.config import JointConfig


class Joint(Layer):
    """J is its width, N the tokens with the blank, n the durations: 0 for RNN-T."""

    def __init__(self, config: JointConfig, encoder_width: int, prediction_width: int, outputs: int):
        """outputs: N + n."""
        super().__init__()
        self.encoder = Linear(encoder_width, config.hidden)
        self.prediction = Linear(prediction_width, config.hidden)
        self.out = Linear(config.hidden, outputs)

    def frames(self, vectors: Array) -> Array:
        """Encoder vectors (…, D) → (…, J), once for each frame."""
        return self.encoder(self.xp.asarray(vectors, self.xp.float32))

    def texts(self, outputs: Array) -> Array:
        """Outputs (…, P) of the prediction network → (…, J), once for each token."""
        return self.prediction(outputs)

    def __call__(self, frames: Array, texts: Array) -> Array:
        """Frames and texts, both (…, J) → logits (…, N + n): tokens, the blank, durations."""
        return self.out(self.xp.relu(frames + texts))
