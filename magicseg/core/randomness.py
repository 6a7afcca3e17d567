"""Counter-based random numbers: every draw depends only on (run seed, stream, sample), never on order or time.

The generator is NumPy's Philox-4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The
key consists of the run's seed and the stream's name. The counter contains the sample's index.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

WORDS_PER_SAMPLE = 4  # one Philox block


def _key(seed: int, stream: str) -> NDArray[np.uint64]:
    stream_word = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little")
    return np.array([seed, stream_word], dtype=np.uint64)


def sample_words(seed: int, stream: str, start: int, stop: int) -> NDArray[np.uint64]:
    """Return random words of samples ``start`` to ``stop - 1``: uint64 (samples, 4), independent of the range."""
    bits = np.random.Philox(key=_key(seed, stream), counter=start)
    return bits.random_raw((stop - start) * WORDS_PER_SAMPLE).reshape(-1, WORDS_PER_SAMPLE)


def sample_seed(seed: int, stream: str, index: int) -> int:
    """Return the 63-bit seed of sample ``index`` in ``stream``."""
    return int(sample_words(seed, stream, index, index + 1)[0, 0]) >> 1
