"""The draw: every row once an epoch, the same on any number of processes, and exact after a stop."""

import json

import pytest
import torch

from suffuse import data


def numbered(n=10):
    return {"x": torch.arange(n, dtype=torch.float32)[:, None], "label": torch.arange(n)}


class Counted:
    """A stream of 0 to 22 in which multiples of 5 are broken; each epoch begins elsewhere."""

    def __init__(self, n=23):
        self.n, self.decoded = n, 0

    def open(self, seed, cursor=None):
        class Reader:
            cursor = 0

            def __next__(reader):
                if reader.cursor == self.n:
                    raise StopIteration
                reader.cursor += 1
                return (reader.cursor - 1 + seed) % self.n

        reader = Reader()
        reader.cursor = cursor or 0
        return reader

    def decode(self, record):
        self.decoded += 1
        return None if record % 5 == 0 else {"x": torch.tensor([float(record)])}


def seen(feed, takes):
    return torch.cat([feed.take(k)["x"][:, 0] for k in takes]).tolist()


def test_an_epoch_has_every_row_once_and_epochs_differ_in_order():
    feed = data.draws(numbered(), seed=0)
    got = seen(feed, [4, 3, 5, 4, 4])
    first, second = got[:10], got[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second and first != sorted(first)
    assert got != seen(data.draws(numbered(), seed=1), [20])


def test_the_rows_of_a_batch_belong_together():
    batch = data.draws(numbered(), seed=0).take(7)
    assert batch["x"][:, 0].tolist() == batch["label"].tolist()


@pytest.mark.parametrize("make", [numbered, Counted], ids=["set", "stream"])
def test_batches_of_any_size_cut_one_sequence(make):
    assert seen(data.draws(make(), seed=3, block=4), [1] * 60) == seen(data.draws(make(), seed=3, block=4), [17, 43])


@pytest.mark.parametrize("make", [numbered, Counted], ids=["set", "stream"])
@pytest.mark.parametrize("before", [0, 1, 9, 10, 17, 18, 19, 37, 58])
def test_a_draw_that_was_stopped_goes_on_exactly(make, before):
    whole = seen(data.draws(make(), seed=5, block=8), [before, 40] if before else [40])[before:]
    feed = data.draws(make(), seed=5, block=8)
    if before:
        feed.take(before)
    kept = json.loads(json.dumps(feed.position))
    again = data.draws(make(), seed=5, block=8)
    again.seek(kept)
    assert seen(again, [40]) == whole


def test_a_stop_at_the_very_end_of_an_epoch_is_no_empty_epoch():
    stream = Counted(23)
    stream.decode = lambda record: {"x": torch.tensor([float(record)])}
    feed = data.draws(stream, seed=0, block=23)
    feed.take(23)
    again = data.draws(stream, seed=0, block=23)
    again.seek(feed.position)
    assert seen(again, [5]) == seen(feed, [5])


@pytest.mark.parametrize("make", [lambda: numbered(12), lambda: Counted(24)], ids=["set", "stream"])
def test_processes_share_what_one_would_take(make):
    """Samples alternate between two processes; what one leaves out because it is broken, nobody takes."""
    one = data.draws(make(), seed=2, block=8)
    parts = [data.draws(make(), seed=2, block=8, shard=(i, 2)) for i in range(2)]
    n = 12 if isinstance(one.size, int) else 19  # 19 of 24 are whole
    alone = seen(one, [n])
    halves = [seen(p, [n // 2]) for p in parts]
    if one.size is None:
        assert len(set(halves[0]) & set(halves[1])) == 0 and set(halves[0] + halves[1]) <= set(range(24))
        assert [x for x in alone if x in halves[0]] == [x for x in halves[0] if x in alone]
    else:
        assert alone[0::2] == halves[0] and alone[1::2] == halves[1]
        whole = seen(one, [12])
        assert whole[0::2] == seen(parts[0], [2, 4]) and whole[1::2] == seen(parts[1], [1, 5])


def test_a_process_decodes_its_own_records_only():
    stream = Counted(24)
    data.draws(stream, seed=0, shard=(1, 4), block=24).take(4)
    assert stream.decoded <= 6


def test_an_epoch_of_a_stream_has_every_whole_record_once():
    feed = data.draws(Counted(), seed=0, block=6)
    whole = [float(k) for k in range(23) if k % 5]
    got = seen(feed, [18, 18])
    assert sorted(got[:18]) == sorted(got[18:]) == whole and got[:18] != got[18:]


def test_the_order_of_a_stream_is_its_own_in_every_epoch_and_block():
    stream = Counted(24)
    stream.decode = lambda record: {"x": torch.tensor([float(record)])}
    plain = seen(data.draws(stream, seed=0, block=1), [48])
    assert plain[0] != plain[24], "the epochs open at different places"
    steps = [(b - a) % 24 for a, b in zip(plain[:23], plain[1:24], strict=True)]
    assert steps == [1] * 23, "a block of 1 keeps the stream's order"
    mixed = seen(data.draws(stream, seed=0, block=12), [24])
    assert sorted(mixed[:12]) == sorted(plain[:12]), "a block shuffles within itself"
    places = [[plain[k : k + 12].index(x) for x in mixed[k : k + 12]] for k in (0, 12)]
    assert places[0] != places[1]


def test_augmentation_is_told_the_samples_numbers_whatever_the_batch():
    def mark(batch, numbers, seed):
        return batch | {"number": numbers + 1000 * seed}

    for make in (numbered, Counted):
        feed = data.draws(make(), seed=7, augment=[mark])
        numbers = torch.cat([feed.take(3)["number"], feed.take(5)["number"]]).tolist()
        alone = data.draws(make(), seed=7, augment=[mark]).take(8)["number"].tolist()
        assert numbers == alone == sorted(set(numbers)) and numbers[0] >= 7000


def test_shards_of_a_set_are_disjoint_and_whole():
    pieces = [data.shard(numbered(), i, 3) for i in range(3)]
    assert [len(p) for p in pieces] == [4, 3, 3]
    rows = [x for p in pieces for x in p[torch.arange(len(p))]["label"].tolist()]
    assert sorted(rows) == list(range(10))
    twice = data.part(pieces[0], torch.tensor([1, 0]))
    assert twice[torch.tensor([0, 1])]["label"].tolist() == [3, 0]


def test_misuse_is_said():
    with pytest.raises(ValueError, match=r"one first size, got \{'x': 2, 'label': 3\}"):
        data.Tensors({"x": torch.zeros(2), "label": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"0 <= i < n, got \(2, 2\)"):
        data.draws(numbered(), seed=0, shard=(2, 2))
    with pytest.raises(ValueError, match="i = 3 and n = 3"):
        data.shard(numbered(), 3, 3)
    with pytest.raises(ValueError, match=r"in 0\.\.9"):
        data.part(numbered(), torch.tensor([10]))
    with pytest.raises(TypeError, match="got 3"):
        data.draws(3, seed=0)
    with pytest.raises(ValueError, match=r"says \['sample'\], got {'epoch': 1}"):
        data.draws(numbered(), seed=0).seek({"epoch": 1})
    with pytest.raises(ValueError, match="no whole record for process 0 of 1"):
        broken = Counted(24)
        broken.decode = lambda record: None
        data.draws(broken, seed=0).take(1)
