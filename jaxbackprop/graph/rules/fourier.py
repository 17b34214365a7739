"""The discrete Fourier transform is a symmetric matrix, F = Fᵀ: it is its own way back."""

import math

import jax.numpy as jnp
from jax import lax

from jaxbackprop.graph.rules.table import rule


@rule("fft")
def fft(cts, outs, x, *, fft_type, fft_lengths):
    """The transforms of reals keep half of the spectrum: X₋ₖ = X̄ₖ is left out.

    With h the number of places that an entry of the half stands for, 1 or 2, and N points in all:
    rfft is the half of F, so its way back is Re F ct with ct zero elsewhere, N irfft(c̄t / h);
    irfft(X) = Re F⁻¹(h X), so its way back is the conjugate of h rfft(ct) / N.
    (S. G. Johnson and M. Frigo, *Implementing FFTs in practice*, 2008, for the half spectrum.)
    """
    (ct,) = cts
    points = math.prod(fft_lengths)

    def back():
        if fft_type == lax.FftType.RFFT:
            half = lax.conj(ct) / places(ct)
            return points * lax.fft(half, lax.FftType.IRFFT, fft_lengths)
        if fft_type == lax.FftType.IRFFT:
            half = lax.fft(ct, lax.FftType.RFFT, fft_lengths)
            return lax.conj(half * places(half)) / points
        return lax.fft(ct, fft_type, fft_lengths)

    def places(half):
        """2 but at frequency 0 and, of an even length, at the highest."""
        k = lax.broadcasted_iota(jnp.int32, half.shape, half.ndim - 1)
        alone = (k == 0) | (2 * k == fft_lengths[-1])
        return jnp.where(alone, 1, 2).astype(half.dtype)

    return (back,)
