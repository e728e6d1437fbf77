"""Encode and decode through Python: shapes, ranges, types, batches, tiles."""

import numpy as np
import pytest

from files import psnr, random_latent, read_picture
from luna import InvalidArgument


@pytest.fixture(scope="module")
def client(shared):
    import luna

    with luna.connect(shared.ipc) as daemon:
        yield daemon


def tile_plan(size, tile, overlap):
    """(start, length) along one axis, as spec/vae.md's example (ComfyUI's tiled_scale) has them."""
    starts = range(0, size - overlap, tile - overlap) if size > tile else [0]
    return [(max(0, min(size - overlap, s)), min(tile, size - max(0, min(size - overlap, s)))) for s in starts]


def tiles_of_three_passes(height, width, tile, overlap):
    """How many tiles a picture takes, in latents or pixels."""
    return sum(len(tile_plan(height, y, overlap)) * len(tile_plan(width, x, overlap))
               for y, x in ((tile, tile), (tile // 2, tile * 2), (tile * 2, tile // 2)))


def test_a_picture_comes_back(client):
    picture = read_picture()
    latent = client.encode_image(picture)
    assert latent.shape == (1, 16, 32, 48) and latent.dtype == np.float32
    assert 0.2 < latent.std() < 5
    image = client.decode_latent(latent)
    assert image.shape == picture.shape and image.dtype == np.float32
    assert image.min() >= 0 and image.max() <= 1
    assert psnr(image, picture) > 25


def test_bytes_and_floats_of_the_same_picture_are_one_picture(client):
    bytes_ = np.round(read_picture()[:, :64, :64] * 255).astype(np.uint8)
    a = client.encode_image(bytes_)
    b = client.encode_image(bytes_.astype(np.float32) / np.float32(255))
    assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()


def test_answers_in_every_type(client):
    latent = random_latent(1)
    image = client.decode_latent(latent)
    assert np.array_equal(client.decode_latent(latent, dtype="f16"), image.astype(np.float16))
    eighths = client.decode_latent(latent, dtype="u8")
    assert eighths.dtype == np.uint8 and np.abs(eighths - image * 255.0).max() <= 0.5001
    halves = image.view(np.uint32)
    rounded = ((halves + 0x7FFF + ((halves >> 16) & 1)) & 0xFFFF0000).view(np.float32)
    assert np.array_equal(client.decode_latent(latent, dtype="bf16"), rounded)


def test_latents_in_half_precision_are_taken(client):
    latent = random_latent(1).astype(np.float16)
    assert np.array_equal(client.decode_latent(latent), client.decode_latent(latent.astype(np.float32)))


def test_a_batch_equals_its_pictures_one_by_one(client):
    latents = random_latent(4, 12, 10, count=2)
    both = client.decode_latent(latents)
    for i in range(2):
        assert both[i : i + 1].tobytes() == client.decode_latent(latents[i : i + 1]).tobytes()
    images = np.random.default_rng(5).random((2, 48, 64, 3), np.float32)
    both = client.encode_image(images)
    for i in range(2):
        assert both[i : i + 1].tobytes() == client.encode_image(images[i : i + 1]).tobytes()


def test_odd_sizes_are_cropped_as_comfyui_does(client):
    image = np.random.default_rng(6).random((1, 45, 61, 3), np.float32)
    latent = client.encode_image(image)
    assert latent.shape == (1, 16, 5, 7)
    cropped = image[:, 2 : 2 + 40, 2 : 2 + 56]
    assert np.array_equal(latent, client.encode_image(np.ascontiguousarray(cropped)))


@pytest.mark.parametrize("height, width, tile, overlap", [(24, 32, 16, 4), (16, 40, 16, 4), (20, 20, 24, 4)])
def test_a_tiled_decode_has_the_tiles_of_the_plan(client, height, width, tile, overlap):
    latent = random_latent(7, height, width)
    _, details = client.decode_latent(latent, tiling="always", tile=8 * tile, overlap=8 * overlap, details=True)
    assert details["tiled"] and details["tiled_why"] == "asked for"
    assert details["tiles"] == tiles_of_three_passes(height, width, tile, overlap)


def test_a_tiled_encode_has_the_tiles_of_the_plan(client):
    image = np.random.default_rng(8).random((1, 192, 256, 3), np.float32)
    _, details = client.encode_image(image, tiling="always", tile=128, overlap=32, details=True)
    assert details["tiles"] == tiles_of_three_passes(192, 256, 128, 32)


def test_one_pass_has_a_third_of_the_passes(client):
    latent = random_latent(7, 24, 32)
    _, details = client.decode_latent(latent, tiling="always", tile=128, overlap=32, passes=1, details=True)
    assert details["tiles"] == len(tile_plan(24, 16, 4)) * len(tile_plan(32, 16, 4))


def test_a_tiled_decode_looks_like_the_whole(client):
    latent = client.encode_image(read_picture())
    whole = client.decode_latent(latent, tiling="never")
    tiled = client.decode_latent(latent, tiling="always", tile=192, overlap=48)
    assert not np.array_equal(whole, tiled)
    assert psnr(whole, tiled) > 25


def test_a_small_picture_is_one_tile_and_the_whole(client):
    latent = random_latent(9)
    whole = client.decode_latent(latent, tiling="never")
    tiled, details = client.decode_latent(latent, tiling="always", details=True)
    assert details["tiles"] in (1, 3)
    assert np.abs(whole - tiled).max() <= 1e-6


def test_auto_does_not_tile_what_fits(client):
    _, details = client.decode_latent(random_latent(9), details=True)
    assert not details["tiled"] and details["tiled_why"] == "" and details["device"] == "cpu"


def test_progress_counts_up(client):
    steps = []
    client.decode_latent(random_latent(10, 24, 24), tiling="always", tile=128, overlap=32,
                         progress=lambda done, total: steps.append((done, total)))
    assert steps == sorted(steps) and steps[-1][0] <= steps[-1][1]


def test_not_a_number_stays_in_its_picture(client):
    latents = random_latent(11, count=2)
    alone = client.decode_latent(latents[1:])
    latents[0, 0, 0, 0] = np.nan
    both, details = client.decode_latent(latents, details=True)
    assert details["not_finite_input"]
    assert both[1:].tobytes() == alone.tobytes()


@pytest.mark.parametrize("by_shared_memory", [True, False])
@pytest.mark.parametrize("tiling", ["never", "always"])
def test_what_bytes_cannot_show_is_told(shared, by_shared_memory, tiling):
    import luna

    options = {"dtype": "u8", "details": True, "tiling": tiling, "tile": 64, "overlap": 16}
    with luna.connect(shared.ipc, shared_memory=by_shared_memory) as client:
        latent = random_latent(12, 12, 12)
        latent[0, -1, -1, -1] = np.nan
        image, details = client.decode_latent(latent, **options)
        assert details["tiled"] == (tiling == "always")
        assert image[0, -1, -1].tolist() == [0, 0, 0]
        assert details["not_finite_input"] and details["not_finite_output"]
        _, details = client.decode_latent(random_latent(12, 12, 12), **options)
        assert not details["not_finite_input"] and not details["not_finite_output"]


def test_infinity_in_a_picture_is_told_and_a_large_number_is_none(client):
    picture = read_picture()[:, :64, :64]
    picture[0, 9, 7, 1] = 1e38
    _, details = client.encode_image(picture, details=True)
    assert not details["not_finite_input"]
    picture[0, 9, 7, 1] = np.inf
    _, details = client.encode_image(picture, details=True)
    assert details["not_finite_input"] and details["not_finite_output"]


@pytest.mark.parametrize("image", [np.zeros((1, 7, 64, 3), np.float32), np.zeros((64, 64, 3), np.float32),
                                   np.zeros((1, 64, 64, 2), np.float32)])
def test_pictures_that_are_none_are_refused(client, image):
    with pytest.raises(InvalidArgument):
        client.encode_image(image)


def test_an_overlap_of_the_tile_is_refused_and_names_both(client):
    with pytest.raises(InvalidArgument, match="128"):
        client.decode_latent(random_latent(1), tiling="always", tile=128, overlap=128)
