"""PyTorch, eager or compiled."""

import torch
import torch.nn.functional as F  # noqa: N812  # as its documentation writes it
from torch import nn

COMPILED = False


def train(model, optimizer, data, report):
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y).long()

    def loss_fn(x, y):
        logits = model(x)
        return F.cross_entropy(logits.view(-1, logits.size(-1)), y.view(-1))

    if COMPILED:
        loss_fn = torch.compile(loss_fn)
    for batches in torch.from_numpy(data.order):
        total = torch.zeros(())
        for rows in batches:
            optimizer.zero_grad()
            loss = loss_fn(x[rows], y[rows])
            loss.backward()
            optimizer.step()
            total += loss.detach()
        with torch.no_grad():
            report(total / len(batches), lambda x: model(torch.from_numpy(x)).numpy())
    return sum(p.numel() for p in model.parameters())


def he_normal(module):
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)


def classifier(model, data, report):
    model.apply(he_normal)
    return train(model, torch.optim.Adam(model.parameters(), 1e-3, fused=True), data, report)


def mlp(data, seed, report):
    torch.manual_seed(seed)
    first, second, classes = data.widths.tolist()
    model = nn.Sequential(
        nn.Linear(data.x.shape[1], first),
        nn.ReLU(),
        nn.Linear(first, second),
        nn.ReLU(),
        nn.Linear(second, classes),
    )
    return classifier(model, data, report)


digits = large = mlp


def cnn(data, seed, report):
    torch.manual_seed(seed)
    data.x, data.test_x = (a.transpose(0, 3, 1, 2) for a in (data.x, data.test_x))
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding="same"),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12 * 12 * 64, 10),
    )
    return classifier(model, data, report)


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.output = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        b, t, d = x.shape
        qkv = self.qkv(self.norm_1(x)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, vocabulary, longest, depth, d, heads):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, d), nn.Embedding(longest, d)
        self.blocks = nn.Sequential(*[Block(d, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(d)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif "norm" not in name:
                small = name.endswith(("output.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / (2 * depth) ** 0.5 if small else 0.02)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions.weight
        return self.norm(self.blocks(x)) @ self.tokens.weight.T


def gpt(data, seed, report):
    torch.manual_seed(seed)
    model = GPT(256, data.x.shape[1], depth=4, d=128, heads=4)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1, fused=True)
    return train(model, optimizer, data, report)
