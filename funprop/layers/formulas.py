"""The formulas of the layers, by name: forward, backward, and both in LaTeX.

Together, since they are read together and written in one notation; each layer is made with its own
(`layer(..., formula=...)`), and keeps it under another name.
"""

from __future__ import annotations

from funprop.formula import Formula


def _elementwise(y: str, slope: str, latex_y: str, latex_slope: str) -> Formula:
    return Formula(
        f"y = {y}",
        f"dx = {slope} dy",
        f"y = {latex_y}",
        rf"dx = {latex_slope} \odot dy",
        elementwise=True,
    )


def _where(above: str, at: str, below: str) -> str:
    return rf"\begin{{cases}} {above} & {at} \\ {below} & \text{{else}} \end{{cases}}"


NORMALISED = r"\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}"
NORM = (
    f"y = {NORMALISED} \\odot s + b",
    r"du = s \odot dy,\ u = (x - \mu) r,\ r = (\sigma^2 + \epsilon)^{-1/2};\quad "
    r"dx = r\,(du - \overline{du} - u\,\overline{u \odot du});\quad "
    r"ds = \sum u \odot dy;\quad db = \sum dy",
)
NORM_TEXT = (
    "y = (x - mean) / sqrt(variance + eps) * scale + bias",
    "u = (x - mean) r, r = 1 / sqrt(variance + eps), du = scale dy; "
    "dx = r (du - mean(du) - u mean(u du)); dscale = sum of u dy; dbias = sum of dy",
)
CONV = (
    "y[p] = sum over k of x[stride p + k] w[k] + b",
    "dw[k] = sum over p of x[stride p + k]^T dy[p]; "
    "dx[q] = sum over stride p + k = q of dy[p] w[k]^T; db = sum of dy",
    r"y_p = \sum_k x_{sp+k} w_k + b",
    r"dw_k = \sum_p x_{sp+k}^\top dy_p;\quad dx_q = \sum_{sp+k=q} dy_p w_k^\top;\quad "
    r"db = \sum_p dy_p",
)
MAX = (
    "dx = dy at the place of the largest, else 0",
    r"dx_q = \sum_{p:\, q = \arg\max_{W(p)} x} dy_p",
)
MEAN = ("dx = dy / n at each of its n places", r"dx_q = \sum_{p:\, q \in W(p)} dy_p / |W(p)|")

FORMULAS = {
    "dense": Formula(
        "y = x w + b",
        "dx = dy w^T; dw = x^T dy; db = sum of dy",
        r"y = x w + b",
        r"dx = dy\, w^\top;\quad dw = x^\top dy;\quad db = \sum dy",
    ),
    "relu": _elementwise("max(x, 0)", "[x > 0]", r"\max(x, 0)", "[x > 0]"),
    "leaky_relu": _elementwise(
        "x where x >= 0, else a x",
        "(1 where x >= 0, else a)",
        _where("x", r"x \ge 0", "a x"),
        _where("1", r"x \ge 0", "a"),
    ),
    "elu": _elementwise(
        "x where x > 0, else a (exp(x) - 1)",
        "(1 where x > 0, else y + a)",
        _where("x", "x > 0", r"a\,(e^x - 1)"),
        _where("1", "x > 0", "y + a"),
    ),
    "gelu": _elementwise(
        "x P(x), P the normal distribution function",
        "(P(x) + x P'(x))",
        r"x\,\Phi(x)",
        r"(\Phi(x) + x\,\varphi(x))",
    ),
    "gelu_tanh": _elementwise(
        "x (1 + t) / 2, t = tanh(u), u = c (x + 0.044715 x^3), c = sqrt(2 / pi)",
        "((1 + t) / 2 + x (1 - t^2) u' / 2)",
        r"\tfrac{x}{2}(1 + t),\ t = \tanh u,\ u = \sqrt{2/\pi}\,(x + 0.044715\,x^3)",
        r"\left(\tfrac{1 + t}{2} + \tfrac{x}{2}(1 - t^2)\,u'\right)",
    ),
    "silu": _elementwise(
        "x s, s = 1 / (1 + exp(-x))",
        "s (1 + x (1 - s))",
        r"x\,\sigma(x)",
        r"\sigma(x)\,(1 + x\,(1 - \sigma(x)))",
    ),
    "tanh": _elementwise("tanh(x)", "(1 - y^2)", r"\tanh x", "(1 - y^2)"),
    "sigmoid": _elementwise(
        "1 / (1 + exp(-x))", "y (1 - y)", r"\frac{1}{1 + e^{-x}}", r"y\,(1 - y)"
    ),
    "softplus": _elementwise("log(1 + exp(x))", "(1 - exp(-y))", r"\log(1 + e^x)", r"(1 - e^{-y})"),
    "gated": Formula(
        "x = (a, b); y = f(a) b",
        "da = f'(a) b dy; db = f(a) dy",
        r"x = (a, b),\ y = f(a) \odot b",
        r"da = f'(a) \odot b \odot dy;\quad db = f(a) \odot dy",
    ),
    "softmax": Formula(
        "y = exp(x) / sum of exp(x)",
        "dx = y (dy - sum of y dy)",
        r"y_i = \frac{e^{x_i}}{\sum_j e^{x_j}}",
        r"dx = y \odot (dy - y^\top dy)",
    ),
    "log_softmax": Formula(
        "y = x - log of sum of exp(x)",
        "dx = dy - exp(y) sum of dy",
        r"y_i = x_i - \log \sum_j e^{x_j}",
        r"dx = dy - e^y \sum_j dy_j",
    ),
    "layer_norm": Formula(*NORM_TEXT, *NORM),
    "group_norm": Formula(*NORM_TEXT, *NORM),
    "batch_norm": Formula(
        NORM_TEXT[0],
        NORM_TEXT[1].replace("u mean(u du))", "u mean(u du)), without a key r du"),
        NORM[0],
        NORM[1].replace(r"u \odot du});", r"u \odot du}),\ \text{without a key } r\,du;"),
    ),
    "rms_norm": Formula(
        "y = x / sqrt(mean(x^2) + eps) * scale",
        "u = x r, r = 1 / sqrt(mean(x^2) + eps), du = scale dy; dx = r (du - u mean(u du)); "
        "dscale = sum of u dy",
        r"y = \frac{x}{\sqrt{\overline{x^2} + \epsilon}} \odot s",
        r"du = s \odot dy,\ u = x r;\quad dx = r\,(du - u\,\overline{u \odot du});\quad "
        r"ds = \sum u \odot dy",
    ),
    "attention": Formula(
        "x = (q, k, v); y = p v, p = softmax(q k^T / sqrt(f))",
        "dv = p^T dy; dp = dy v^T; dz = p (dp - sum of p dp); dq = dz k / sqrt(f); "
        "dk = dz^T q / sqrt(f); dx = (dq, dk, dv)",
        r"x = (q, k, v),\ y = p v,\ p = \operatorname{softmax}\left(q k^\top / \sqrt{f}\right)",
        r"dv = p^\top dy;\quad dp = dy\,v^\top;\quad dz = p \odot (dp - \textstyle\sum p \odot dp);"
        r"\quad dq = dz\,k / \sqrt{f};\quad dk = dz^\top q / \sqrt{f};\quad dx = (dq, dk, dv)",
    ),
    "embedding": Formula(
        "y = table[x]",
        "dtable[r] = sum of dy over all places with x = r",
        r"y_t = E_{x_t}",
        r"dE_r = \sum_{t:\, x_t = r} dy_t",
    ),
    "learned_positions": Formula(
        "y = x + table[place]",
        "dx = dy; dtable[t] = sum of dy at place t",
        r"y_t = x_t + P_t",
        r"dx = dy;\quad dP_t = \sum_n dy_{nt}",
    ),
    "dropout": Formula(
        "y = m x / (1 - rate), m drawn 0 or 1, without a key y = x",
        "dx = m dy / (1 - rate), the same m, without a key dx = dy",
        r"y = \frac{m \odot x}{1 - p},\ m \sim \mathrm{Bernoulli}(1 - p)",
        r"dx = \frac{m \odot dy}{1 - p}",
    ),
    "conv": Formula(*CONV),
    "conv_transpose": Formula(
        "y[q] = sum over stride p + k = q of x[p] w[k] + b",
        "dw[k] = sum over p of x[p]^T dy[stride p + k]; "
        "dx[p] = sum over k of dy[stride p + k] w[k]^T; db = sum of dy",
        r"y_q = \sum_{sp+k=q} x_p w_k + b",
        r"dw_k = \sum_p x_p^\top dy_{sp+k};\quad dx_p = \sum_k dy_{sp+k} w_k^\top;\quad "
        r"db = \sum_q dy_q",
    ),
    "max_pool": Formula("y = largest of each window", MAX[0], r"y_p = \max_{W(p)} x", MAX[1]),
    "global_max_pool": Formula("y = largest of each channel", MAX[0], r"y = \max_q x_q", MAX[1]),
    "average_pool": Formula(
        "y = mean of each window", MEAN[0], r"y_p = \frac{1}{|W(p)|}\sum_{W(p)} x", MEAN[1]
    ),
    "global_average_pool": Formula(
        "y = mean of each channel", MEAN[0], r"y = \frac{1}{n}\sum_q x_q", MEAN[1]
    ),
    "upsample": Formula(
        "y = x, each number at several places",
        "dx = sum of dy over these places",
        r"y_p = x_{q(p)}",
        r"dx_q = \sum_{p:\, q(p) = q} dy_p",
    ),
    "reshape": Formula("y = x in another shape", "dx = dy in the shape of x", "y = x", "dx = dy"),
    "add": Formula("y = sum of x_i", "dx_i = dy", r"y = \sum_i x_i", r"dx_i = dy"),
    "concatenate": Formula(
        "y = (x_1, x_2, ...)", "dx_i = its part of dy", r"y = (x_1, x_2, \dots)", r"dx_i = dy_{(i)}"
    ),
    "last_step": Formula(
        "y = x at the last time",
        "dx = dy at the last time, else 0",
        "y = x_T",
        r"dx_t = [t = T]\,dy",
    ),
    "lif": Formula(
        "v = decay v + x_t - threshold s; s = 1 where v > threshold, else 0",
        "from the last time to the first: dx = f'(v - threshold) ds + decay dx_after, f' the "
        "surrogate's slope",
        r"v_t = \lambda v_{t-1} + x_t - \vartheta s_{t-1},\ s_t = [v_t > \vartheta]",
        r"dx_t = f'(v_t - \vartheta)\,ds_t + \lambda\,dx_{t+1}",
    ),
    "lstm": Formula(
        "z = x_t w_x + h w_h + b; i, f, o = sigmoid, g = tanh of its parts; c = f c + i g; "
        "h = o tanh(c)",
        "from the last time to the first: dc += o (1 - tanh(c)^2) dh; di = g dc; df = c_before dc; "
        "dg = i dc; do = tanh(c) dh; dz through the gates' slopes; dx = dz w_x^T; "
        "dw_x = sum of x^T dz; dw_h = sum of h_before^T dz; dh_before = dz w_h^T; dc_before = f dc",
        r"z_t = x_t W_x + h_{t-1} W_h + b,\ c_t = f_t c_{t-1} + i_t g_t,\ h_t = o_t \tanh c_t",
        r"dc_t \mathrel{+}= o_t (1 - \tanh^2 c_t)\,dh_t;\quad dh_{t-1} = dz_t W_h^\top;\quad "
        r"dW_h = \sum_t h_{t-1}^\top dz_t;\quad dW_x = \sum_t x_t^\top dz_t",
    ),
    "gru": Formula(
        "r, u = sigmoid of x_t w_x + h w_h + b; v = tanh(x_t w_v + b_v + r (h w_hv + b_h)); "
        "h = (1 - u) v + u h",
        "from the last time to the first: dv = (1 - u) dh; du = (h_before - v) dh; through the "
        "gates' slopes to dz; dw = sum of inputs^T dz; dh_before = u dh + dz w_h^T",
        r"h_t = (1 - u_t) v_t + u_t h_{t-1}",
        r"dv_t = (1 - u_t)\,dh_t;\quad du_t = (h_{t-1} - v_t)\,dh_t;\quad "
        r"dh_{t-1} = u_t\,dh_t + dz_t W_h^\top",
    ),
}
