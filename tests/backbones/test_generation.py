import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.causal import next_logits
from imprint.backbones.generation import continued, generate
from imprint.backbones.text_tokenizer import train_tokenizer
from imprint.core.errors import ConfigError


def network(kind="gpt", context=24):
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "dropout": 0.0}
    made = build_encoder(f"text:{kind}", image_size=32, arch=sizes, vocabulary=50, context=context).eval()
    for parameter in made.parameters():  # larger than at the start, so that tokens matter
        if parameter.ndim > 1:
            parameter.data.mul_(5)
    return made


@pytest.mark.parametrize("kind", ["gpt", "gpt2"])
def test_greedy_takes_the_likeliest_token_each_time(kind):
    model, ids = network(kind), torch.tensor([[1, 2, 3], [9, 8, 7]])
    for _ in range(12):
        chosen = next_logits(model, model(ids)[:, -1]).argmax(1, keepdim=True)
        ids = torch.cat([ids, chosen], 1)
    assert torch.equal(generate(model, ids[:, :3], 12), ids)


@pytest.mark.parametrize("kind", ["gpt", "gpt2"])
def test_a_text_longer_than_the_context_goes_on_from_its_last_tokens(kind):
    model = network(kind, context=10)
    prompt = torch.randint(0, 50, (1, 14))
    assert torch.equal(generate(model, prompt, 3)[:, 14:], generate(model, prompt[:, 9:], 3)[:, 5:])
    long = generate(model, prompt, 40)
    assert long.shape == (1, 54) and torch.equal(long[:, :14], prompt)


def test_draws_follow_the_temperature_the_seed_and_the_likeliest_k():
    model, prompt = network("gpt2"), torch.tensor([[1, 2, 3]]).repeat(4000, 1)
    logits = next_logits(model, model(prompt[:1])[:, -1])[0].detach()
    drawn = generate(model, prompt, 1, temperature=2.0, seed=3)[:, -1]
    share = torch.bincount(drawn, minlength=50) / 4000
    p = (logits / 2.0).softmax(0)
    assert ((share - p).abs() < 5 * (p * (1 - p) / 4000).sqrt() + 1e-3).all()
    assert torch.equal(drawn, generate(model, prompt, 1, temperature=2.0, seed=3)[:, -1])
    assert not torch.equal(drawn, generate(model, prompt, 1, temperature=2.0, seed=4)[:, -1])
    few = generate(model, prompt, 1, temperature=2.0, top_k=3)[:, -1].unique()
    assert set(few.tolist()) <= set(logits.topk(3).indices.tolist()) and len(few) > 1


def test_a_row_that_has_ended_stays_so():
    model, prompt = network("gpt2"), torch.tensor([[1, 2, 3], [5, 6, 7]])
    free = generate(model, prompt, 10)
    end = int(free[0, 5])
    found = generate(model, prompt, 10, end=end)
    first = free[0].tolist().index(end, 3)
    assert torch.equal(found[0, : first + 1], free[0, : first + 1]) and (found[0, first:] == end).all()


def test_texts_go_on_with_the_tokenizer_of_the_encoder():
    tokenizer = train_tokenizer(["a dog and a cat"] * 3, vocabulary=270)
    torch.manual_seed(0)
    arch = {"embed_dim": 32, "depth": 1, "num_heads": 2, "dropout": 0.0}
    model = build_encoder("text:gpt2", image_size=32, arch=arch, vocabulary=tokenizer.vocabulary, context=16).eval()
    model.tokenizer = tokenizer
    one = continued(model, ["a dog", "a cat"], 20, seed=1)
    assert len(one) == 2 and all(isinstance(text, str) for text in one)
    assert one == continued(model, ["a dog", "a cat"], 20, seed=1)


def test_nonsense_is_refused():
    with pytest.raises(ConfigError, match="both sides"):
        generate(network("bert"), torch.tensor([[1]]), 1)
    for prompt, more in ((torch.zeros(1, 0, dtype=torch.int64), {}), (torch.tensor([[1]]), {"temperature": -1.0})):
        with pytest.raises(ConfigError, match="generate needs"):
            generate(network(), prompt, 1, **more)
