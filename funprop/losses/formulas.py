"""The formulas of the losses, by name; see `funprop.layers.formulas`. Of one term: the loss is the
sum of them, each times its weight."""

from __future__ import annotations

from funprop.formula import Formula

FORMULAS = {
    "mean_squared": Formula(
        "L = (y - t)^2", "dy = 2 (y - t)", r"L = (y - t)^2", r"dy = 2\,(y - t)"
    ),
    "mean_absolute": Formula(
        "L = |y - t|", "dy = sign(y - t)", r"L = |y - t|", r"dy = \operatorname{sign}(y - t)"
    ),
    "huber": Formula(
        "L = e^2 / 2 where |e| <= d, else d (|e| - d / 2), e = y - t",
        "dy = e clipped to [-d, d]",
        r"L = \begin{cases} e^2 / 2 & |e| \le \delta \\ \delta\,(|e| - \delta / 2) & \text{else} "
        r"\end{cases},\ e = y - t",
        r"dy = \max(-\delta, \min(e, \delta))",
    ),
    "softmax_cross_entropy": Formula(
        "L = -sum of q log p, p = softmax(z)",
        "dz = p - q",
        r"L = -\sum_c q_c \log p_c,\ p = \operatorname{softmax}(z)",
        r"dz = p - q",
    ),
    "binary_cross_entropy": Formula(
        "L = -t log p - (1 - t) log(1 - p), p = sigmoid(z)",
        "dz = p - t",
        r"L = -t \log p - (1 - t) \log(1 - p),\ p = \sigma(z)",
        r"dz = p - t",
    ),
    "linear_cross_entropy": Formula(
        "z = x w^T + b; L = -sum of q log p, p = softmax(z)",
        "dz = p - q; dx = dz w; dw = dz^T x; db = sum of dz",
        r"z = x W^\top + b,\ L = -\sum_c q_c \log p_c,\ p = \operatorname{softmax}(z)",
        r"dz = p - q;\quad dx = dz\,W;\quad dW = dz^\top x;\quad db = \sum dz",
    ),
    "linear_cross_entropy_z": Formula(
        "z = x w^T + b; L = -sum of q log p + zeta r^2, p = softmax(z), r = log of sum of exp(z)",
        "dz = p - q + 2 zeta r p; dx = dz w; dw = dz^T x; db = sum of dz",
        r"z = x W^\top + b,\ L = -\sum_c q_c \log p_c + \zeta r^2,\ "
        r"p = \operatorname{softmax}(z),\ r = \log \sum_c e^{z_c}",
        r"dz = p - q + 2 \zeta r p;\quad dx = dz\,W;\quad dW = dz^\top x;\quad db = \sum dz",
    ),
}
