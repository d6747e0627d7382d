"""``Digits`` against scikit-learn's own arrays."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from gap_plugin import Digits


def test_splits_are_a_fixed_fifth_of_each_class_and_the_rest():
    train, test = Digits('train'), Digits('test')
    assert (len(train), len(test), len(Digits('all'))) == (1442, 355, 1797)
    chosen = [{s.get_data_info(i)['img_path'] for i in range(len(s))}
              for s in (train, test)]
    assert len(chosen[0]) == 1442 and len(chosen[1]) == 355
    assert chosen[0].isdisjoint(chosen[1])
    labels = [test.get_data_info(i)['gt_label'] for i in range(len(test))]
    everything = np.bincount(load_digits().target)
    assert (np.bincount(labels) == everything // 5).all()


def test_images_are_those_of_scikit_learn():
    data, digits = load_digits(), Digits('all')
    for i in (0, 7, 1796):
        sample = digits[i]
        assert sample['img'].dtype == np.uint8
        assert sample['img'].shape == (8, 8, 3)
        for channel in range(3):
            np.testing.assert_allclose(
                sample['img'][..., channel] / 255 * 16, data.images[i],
                atol=0.04)
        assert sample['gt_label'] == data.target[i]


def test_class_names_are_the_digits():
    assert Digits('test').metainfo['classes'] == tuple('0123456789')


def test_wrong_split_is_named():
    with pytest.raises(ValueError, match="'train', 'test', 'all'.*'val'"):
        Digits('val')
