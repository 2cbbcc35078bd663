"""Cross-layer equalisation changes no output, and undoes what makes a net hard to quantise."""

import pytest
import torch
from torch import nn

from mnv4_mm.deploy.equalise import equalise, find_junctions, rescale, tensors_of


class Net(nn.Module):
    """Layers of every kind that can be rescaled: a shortcut, a norm as reader, two readers, shared weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.expand, self.project = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1, bias=False)
        self.norm, self.last, self.other = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.shared = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.down(self.first(x).relu())
        x = x + self.project(self.expand(x).relu())
        a, b = self.last(x), self.other(self.norm(x).relu())
        return self.shared(a), self.shared(b)


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net().eval()
    nn.init.normal_(net.norm.running_mean)
    return torch.export.export(net, (torch.rand(1, 3, 16, 16),)).module()


def names(nodes):
    return sorted(str(node.args[1].target).removesuffix('.weight') for node in nodes)


def test_junctions(net):
    found = [(names(junction.writers), names(junction.readers)) for junction in find_junctions(net)]
    assert found == [
        (['first'], ['down']),
        (['down', 'project'], ['expand', 'last', 'norm']),  # the shortcut
        (['expand'], ['project']),
        (['norm'], ['other']),
    ]


def test_outputs_are_equal_to_the_last_bit(net):
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))[:1]
    expected = net(image)
    generator = torch.Generator().manual_seed(0)
    before = {name: tensor.clone() for name, tensor in tensors_of(net).items()}
    for junction in find_junctions(net):
        rescale(
            junction, torch.randint(-6, 7, (junction.channels,), generator=generator).float().exp2(), tensors_of(net)
        )
    assert all(
        not torch.equal(before[f'{name}.weight'], tensors_of(net)[f'{name}.weight']) for name in ('norm', 'down')
    )
    assert all(torch.equal(a, b) for a, b in zip(net(image), expected, strict=True))
    assert equalise(net, [image]) == 4
    assert all(torch.equal(a, b) for a, b in zip(net(image), expected, strict=True))


def test_ranges_become_equal_for_a_depthwise_reader(net):
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    junction = next(iter(find_junctions(net)))
    rescale(junction, torch.tensor([1, 2, 4, 8, 16, 32, 64, 128.0]), tensors_of(net))
    equalise(net, [image])
    first = tensors_of(net)
    values = torch.conv2d(image, first['first.weight'], first['first.bias'], padding=1).relu().amax((0, 2, 3))
    assert values.max() / values[values > 0].min() <= 2.0  # powers of two


def test_a_channel_that_is_always_zero_keeps_its_factor(net):
    with torch.no_grad():
        tensors_of(net)['first.weight'][3] = 0
        tensors_of(net)['first.bias'][3] = -1
    equalise(net, [torch.rand(1, 3, 16, 16)])
    assert all(tensor.isfinite().all() for tensor in tensors_of(net).values())
    assert tensors_of(net)['first.bias'][3] == -1
