"""The keras.ops that a functional model may hold: arithmetic on tensors, by the names that Keras writes.

None runs a function that is given to it (map, scan, while_loop, cond), none reads a file, and none repeats anything as
often as a number says: what they make of shapes is measured where a model is built, before there is memory for it.
"""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ARITHMETIC = _names(
    """
    Abs Absolute Add All Amax Amin Any Arccos Arccosh Arcsin Arcsinh Arctan Arctan2 Arctanh Argmax Argmin
    Argsort Average Cbrt Ceil Clip Concatenate Cos Cosh CountNonzero Cross Cumprod Cumsum Deg2rad Diagonal
    Diff Digitize Divide DivideNoNan Dot Einsum Equal Exp Exp2 ExpandDims Expm1 Fabs Flip Floor FloorDivide Fmax Fmin
    Fmod GetItem Greater GreaterEqual Heaviside Hypot Inner IsIn Isclose Isfinite Isinf Isnan Less LessEqual Log
    Log10 Log1p Log2 Logaddexp Logaddexp2 LogicalAnd LogicalNot LogicalOr LogicalXor Matmul Max Maximum Mean Median Min
    Minimum Mod Moveaxis Multiply NanToNum Nanmax Nanmean Nanmin Nanstd Nansum Nanvar Negative NotEqual OnesLike
    Power Prod Ptp Quantile Rad2deg Ravel Reciprocal Reshape Roll Rot90 Round Select Sign Signbit Sin Sinc
    Sinh Sort Split Sqrt Square Squeeze Stack Std Subtract Sum Swapaxes Take TakeAlongAxis Tan Tanh Tensordot Trace
    Transpose Tril Triu TrueDivide Trunc Var Vdot Where ZerosLike
    """
)
_NETWORKS = _names(
    """
    AveragePool Celu DepthToSpace DotProductAttention Elu Gelu Glu HardShrink HardSigmoid HardSilu HardTanh LeakyRelu
    LogSigmoid LogSoftmax MaxPool Moments Normalize OneHot Relu Relu6 Selu Sigmoid Silu SoftShrink Softmax Softplus
    Softsign SpaceToDepth SparsePlus SparseSigmoid Sparsemax Squareplus TanhShrink Threshold
    """
)

#: By the module under which Keras writes them.
OPERATIONS: dict[str, frozenset[str]] = {
    "keras.src.ops.numpy": _ARITHMETIC,
    "keras.src.ops.nn": _NETWORKS,
    "keras.src.ops.math": _names("CDist Erf Erfc Erfinv InTopK Logsumexp Rsqrt TopK"),
    "keras.src.ops.core": _names("Cast SaturateCast Slice StopGradient Unstack"),
    "keras.src.ops.linalg": _names("Det Norm"),
    "keras.src.ops.image": _names("RGBToGrayscale RGBToHSV HSVToRGB"),
}
