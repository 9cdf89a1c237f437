r"""Curvature of the loss: products of vectors with its Hessian, and the spectrum estimated from these products.

Two backward passes of :mod:`torch.autograd` make one product. The eigenvalues come from
``scipy.sparse.linalg.eigsh`` (ARPACK). The library curvlinops was considered and not used: it brings nine packages
(torchvision among them), needs forward-mode derivatives that some layers lack, draws from the global random numbers,
and returns densities and traces without an error.

Cost: a product with the Hessian is a forward pass and two backward passes over the data, 2.8 times a gradient. A
product with the Gauss-Newton matrix takes 2.2 times a gradient. A spectrum takes at most ``max_products`` products,
reports how many it took, and spends nine tenths of its time in them (measured on one CPU core: 301,066 parameters in
three layers, 1,000 samples). Vectors are float64 in host memory. At most 45 vectors of the length of the parameters
exist at a time: 0.4 GB for a million parameters.

Accuracy: measured with the defaults for a network of 1,810 parameters that learns digits, after 0, 300 and 3,000 steps.
Spectra in float32 were compared with the dense Hessian in float64, with 20 seeds. The error of the leading eigenvalues
is 2e-6 of their value. The error of the lowest eigenvalues is 2e-4 of the leading eigenvalue. The other errors, as
reported after 0, 300 and 3,000 steps:

* Fraction of flat directions at 1e-3: 0.1, 0.15 and 0.03.
* Index: 0.07, 0.06 and 0.01.
* Trace: 3.1 (of 6.5), 2.4 (of 24) and 0.5 (of 6.2).

No estimate was off by more than 2.1 of its reported errors.

Sources: Lin, Saad and Yang 2016 (SIAM Review 58, 34) and Ghorbani, Krishnan and Xiao 2019 (arXiv 1901.10159) for the
density by stochastic Lanczos quadrature. Meyer et al. 2021 (arXiv 2010.09649) for the gain from removing the largest
eigenvalues before a trace is estimated. Pearlmutter 1994 and Schraudolph 2002 (Neural Computation 6, 147 and 14, 1723)
for the two products.
"""

from lightning_glassy.curvature.lanczos import measure_spectrum
from lightning_glassy.curvature.operators import CurvatureOperator, GaussNewtonOperator, HessianOperator
from lightning_glassy.curvature.spectrum import Estimate, Spectrum

__all__ = [
    "CurvatureOperator",
    "Estimate",
    "GaussNewtonOperator",
    "HessianOperator",
    "Spectrum",
    "measure_spectrum",
]
