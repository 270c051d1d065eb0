"""Linear layers whose weights onnxruntime packs once. Their products are made by `prepacked` and `int8`."""

from model.arrays import Array
from model.cpu.tracing import Product
from model.layers import Layer


class ProductLinear(Layer):
    def __init__(self, product: Product):
        """product: (…, I) → (…, O)"""
        super().__init__()
        self.product = product

    def __call__(self, x: Array) -> Array:
        """(…, I) → (…, O)"""
        return self.xp.product(x, self.product)


class ProductEmbedding(Layer):
    """A vector for each token; a head scores tokens by its own product."""

    def __init__(self, weight: Array, product: Product):
        """weight: the vectors (V, M); product: (…, M) → (…, V)"""
        super().__init__()
        self.weight = weight
        self.product = product

    def scores(self, x: Array, bias: Array) -> Array:
        """(…, M) with bias (V,) → (…, V), float32"""
        return self.xp.product(self.xp.asarray(x, self.xp.float32), self.product) + bias
