"""Three lines around a training loop tell what each sample was worth; here they find wrong labels.

python examples/01_three_lines.py
"""

import tempfile

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from inrun import Attributor

# 1797 images of digits; every tenth of the training images gets a wrong label
torch.manual_seed(0)
data = load_digits()
images, labels = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
x, y, val_x, val_y = images[:1440], labels[:1440].clone(), images[1440:], labels[1440:]
wrong = torch.arange(len(y)) % 10 == 0
y[wrong] = (y[wrong] + torch.randint(1, 10, (int(wrong.sum()),))) % 10

model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
folder = tempfile.mkdtemp()

# the lines of the README
targets = {"val": lambda: F.cross_entropy(model(val_x), val_y)}
attr = Attributor(model, optimizer, targets, method="path", store=folder)
for _ in range(300):
    ids = torch.randint(len(x), (32,))
    with attr.batch(ids):  # around forward and backward
        F.cross_entropy(model(x[ids]), y[ids]).backward()
    optimizer.step()
    optimizer.zero_grad()
values = attr.close()

lowest = [row["sample_id"] for row in values.bottom(100).to_pylist()]
print(f"wrong labels among the 100 lowest values: {int(wrong[lowest].sum())}, by chance 10")
print(f"best: {values.top(1).to_pylist()[0]}")
print(f"worst: {values.bottom(1).to_pylist()[0]}")
total = values.ledger()
line = f"drop {total.drop:.4f} = drift {total.drift:.4f} + values {total.values:.4f}"
print(line, f"+ residual {total.residual:.4f}")
