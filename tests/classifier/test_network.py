import numpy as np
import pytest
import torch

from metalstm.classifier import Classifier
from metalstm.classifier.network import BATCH, to_x
from metalstm.images import dark_paper


@pytest.mark.parametrize("size", [28, 32])
def test_light_paper_is_turned_dark_as_in_meta_training(size):
    rng = np.random.RandomState(0)
    # Borders near the limit, which is half of 255, on either side and exactly there.
    images = np.stack([rng.randint(0, 256, (size, size, 1)) for _ in range(50)]).astype(np.uint8)
    middle = np.full((2, size, size, 1), 127, np.uint8)
    middle[:, 0, :], middle[:, -1, :], middle[:, 1:-1, 0], middle[:, 1:-1, -1] = 127, 128, 127, 128
    middle[1, 0, 0] = 128
    pixels = np.concatenate([images, middle])
    expected = np.stack([dark_paper(image) for image in pixels]).transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.testing.assert_array_equal(to_x(torch.from_numpy(pixels), drawing=True).numpy(), expected)
    plain = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.testing.assert_array_equal(to_x(torch.from_numpy(pixels), drawing=False).numpy(), plain)


def test_any_number_of_images_goes_through_a_batch_at_a_time(make, patterns):
    fitted = Classifier(make()).fit(patterns.support, patterns.labels)
    nine = np.stack([fitted.preprocessing(image) for image in patterns.query])
    many = np.resize(nine, (2 * BATCH + 1, *nine.shape[1:]))
    expected = np.resize(fitted.probabilities(nine), (len(many), 3))
    np.testing.assert_allclose(fitted.probabilities(many), expected, atol=1e-6)
    assert fitted.probabilities(nine[:0]).shape == (0, 3)
    assert fitted.predict([]).tolist() == []
