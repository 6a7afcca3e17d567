"""magicseg: class labels to a pixel-labelled synthetic data set, a trained segmentation model, a measured score.

``magicseg.load_model(path)`` loads a trained model. Importing this package loads no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from magicseg.model.open_vocabulary import load_model

    __version__: str

__all__ = ["__version__", "load_model"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from magicseg.core.package import package_version

        return package_version()
    if name == "load_model":
        from magicseg.model.open_vocabulary import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
