"""ResNet18 of transformers (`hf` extra), pretrained on ImageNet, with a new head and frozen
BatchNorm statistics.

BatchNorm in training mode makes a sample's gradient depend on its batch, and then no method of this
project, nor any influence function, has a per-sample gradient to speak of. So the statistics stay
those of ImageNet, in training as in scoring; gains and offsets are trained. The paper does not say
what it did.
"""

from pathlib import Path

from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from inrun.data.hub import require_hub

CHECKPOINT = "microsoft/resnet-18"


class ResNet18(nn.Module):
    """features(x): pooled [n, 512]; head: a new linear layer.

    Args:
        outputs: classes.
        pretrained: a hub name or a local folder; "" for random weights of the same architecture.
        config: another architecture, for tests; with pretrained="" only.
    """

    def __init__(
        self, outputs: int, pretrained: str = CHECKPOINT, config: ResNetConfig | None = None
    ):
        super().__init__()
        if pretrained and not Path(pretrained).exists():
            require_hub(
                f"the weights of {pretrained}",
                "use data=digits or data=mnist-5k with a conv net, which need no hub, or "
                "recipe.network.pretrained=<a local copy>",
            )
        if pretrained:
            self.body = ResNetModel.from_pretrained(pretrained)
        else:
            eighteen = ResNetConfig(
                layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512]
            )
            self.body = ResNetModel(config or eighteen)
        self.head = nn.Linear(list(self.body.config.hidden_sizes or ())[-1], outputs)
        self.train()

    def train(self, mode: bool = True) -> "ResNet18":
        """Statistics stay frozen in either mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def features(self, x: Tensor) -> Tensor:
        """[n, d]: what enters the last layer."""
        return self.body(x).pooler_output.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
