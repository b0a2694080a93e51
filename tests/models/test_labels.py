from torchvision.models._meta import _IMAGENET_CATEGORIES

from sptrace.models import labels


def test_the_file_holds_torchvisions_names() -> None:
    assert labels.imagenet() == tuple(_IMAGENET_CATEGORIES)


def test_only_a_network_of_1000_classes_gets_them() -> None:
    assert labels.for_classes(1000) == labels.imagenet()
    assert labels.for_classes(10) is None
