"""Names for the array shapes that cross public boundaries.

Axes: `b` batch, `h w c` image (NHWC), `*space` any number of spatial axes (two for images,
three for volumes, none for tabular features), `e` ensemble member, `s` Monte Carlo sample,
`k` class.
"""

from jaxtyping import Array, Bool, Float, Int, Key

Images = Float[Array, "b *space c"]
FeatureMap = Float[Array, "b *space c"]
Pooled = Float[Array, "b c"]
Gate = Float[Array, "b c"]
Logits = Float[Array, "b k"]
Probabilities = Float[Array, "*ensemble b k"]
Labels = Int[Array, " b"]
Present = Bool[Array, " b"]
DropoutKey = Key[Array, ""] | Key[Array, " b"]
