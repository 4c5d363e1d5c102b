import math

import pytest
import torch

from imprint.backbones.build import build_encoder
from imprint.backbones.causal import Request, last_states, next_logits, require_causal, score
from imprint.core.errors import ConfigError

KINDS = ("gpt", "gpt2")


def network(kind="gpt", context=24, **arch):
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "dropout": 0.0} | arch
    made = build_encoder(f"text:{kind}", image_size=32, arch=sizes, vocabulary=50, context=context).eval()
    for parameter in made.parameters():  # larger than at the start, so that tokens matter
        if parameter.ndim > 1:
            parameter.data.mul_(5)
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padded", [True, False])
def test_a_later_token_changes_no_earlier_logit(kind, padded):
    model, ids = network(kind), torch.randint(0, 50, (3, 24))
    before = next_logits(model, model(ids, padded=padded).flatten(0, 1)).view(3, 24, 50)
    for place in (1, 11, 23):
        other = ids.clone()
        other[:, place] = (ids[:, place] + 7) % 50
        after = next_logits(model, model(other, padded=padded).flatten(0, 1)).view(3, 24, 50)
        torch.testing.assert_close(after[:, :place], before[:, :place], rtol=0, atol=1e-6)
        assert (after[:, place:] - before[:, place:]).abs().amax() > 1e-3  # and it does change the later ones


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_reaches_a_later_token(kind):
    model, seen = network(kind), []
    model.network.get_input_embeddings().register_forward_hook(lambda m, i, o: (o.retain_grad(), seen.append(o))[1])
    model(torch.randint(0, 50, (2, 10)))[:, 4].square().sum().backward()
    reached = seen[0].grad.abs().sum((0, 2)) > 0
    assert reached.tolist() == [True] * 5 + [False] * 5


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_sums_of_one_token_at_a_time(kind, monkeypatch):
    monkeypatch.setattr("imprint.backbones.causal.LOGITS", 150)  # three tokens at a time
    model, generator = network(kind), torch.Generator().manual_seed(1)
    requests = []
    for size, scored in ((24, 5), (7, 1), (7, 6), (2, 1), (15, 3), (9, 4)):
        requests.append(Request(torch.randint(0, 50, (size,), generator=generator).tolist(), scored))
    found = score(model, requests, rows=2, tokens=40)
    for i, request in enumerate(requests):
        nats, greedy = 0.0, True
        for place in range(len(request.ids) - request.scored, len(request.ids)):
            with torch.no_grad():
                logits = model(torch.tensor([request.ids[:place]]))[0, -1] @ model.token_embedding.T
            nats -= float(logits.log_softmax(-1)[request.ids[place]])
            greedy &= int(logits.argmax()) == request.ids[place]
        assert found.nats_R[i] == pytest.approx(nats, abs=1e-4)
        assert bool(found.greedy_R[i]) == greedy and found.tokens_R[i] == request.scored


def test_what_the_likeliest_tokens_write_is_greedy_and_anything_else_is_not():
    from imprint.backbones.generation import generate

    model = network("gpt2")
    written = generate(model, torch.tensor([[3, 4, 5]]), 6)[0].tolist()
    changed = [*written[:-1], (written[-1] + 1) % 50]
    assert score(model, [Request(written, 6), Request(changed, 6), Request(changed[:-1], 5)]).greedy_R.tolist() == [
        True, False, True,
    ]  # fmt: skip


def test_an_undecided_network_gives_log_k_to_each_token():
    model = network("gpt2")
    torch.nn.init.zeros_(model.token_embedding)
    found = score(model, [Request([1, 2, 3, 4], 3)])
    assert found.nats_R[0] == pytest.approx(3 * math.log(50))


@pytest.mark.parametrize("request_", [Request([1, 2], 2), Request([1, 2], 0), Request([0] * 25, 1)])
def test_requests_that_do_not_fit_are_refused(request_):
    with pytest.raises(ConfigError, match="does not fit a context of 24"):
        score(network(), [request_])


def test_the_last_state_is_that_of_the_last_token():
    model, ids = network(), torch.randint(0, 50, (3, 8))
    ids[0, 5:], ids[1, 1:] = -1, -1
    states = model(ids, padded=False)
    last = last_states(states, ids)
    for row, place in enumerate((4, 0, 7)):
        assert torch.equal(last[row], states[row, place])
        alone = model(ids[row : row + 1, : place + 1])[0, -1]  # what stands behind it was not seen
        torch.testing.assert_close(last[row], alone, rtol=1e-4, atol=1e-5)


def test_encoders_that_cannot_go_on_are_refused():
    with pytest.raises(ConfigError, match="'text:bert' looks at both sides"):
        require_causal(network("bert"), "incontext")
    with pytest.raises(ConfigError, match="does not predict text"):
        require_causal(build_encoder("resnet18", image_size=32), "incontext")
    with pytest.raises(ConfigError, match="no tokenizer"):
        require_causal(network(), "incontext")
