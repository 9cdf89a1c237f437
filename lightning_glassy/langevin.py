r"""Training at a temperature: Langevin dynamics of the weights, as an optimiser."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

Scheme = Literal["euler", "symplectic"]

_NOISE = "noise"  # key of the state of the random numbers in a state_dict


class Langevin(Optimizer):
    r"""Langevin dynamics at temperature :math:`kT` on the landscape of the loss L.

    The temperature is a control parameter of the training, in units of the loss. At small steps, the weights sample
    :math:`e^{-L(w)/kT}`. In the formulas, h is ``lr``, :math:`g = \nabla L(w)` is the gradient, :math:`\gamma` is the
    friction, and :math:`\xi` are independent standard normal numbers, new for each weight in each step.

    ``scheme="euler"`` is the overdamped dynamics, by Euler and Maruyama. The mobility is 1. A step is

    .. math:: w \leftarrow w - h\,g + \sqrt{2 h\,kT}\,\xi.

    ``scheme="symplectic"`` is the underdamped dynamics with mass 1 and a velocity v that starts at 0. A step has one
    gradient. It is a kick, half a drift, friction and noise, and half a drift:

    .. math:: v \leftarrow v - h\,g,\quad w \leftarrow w + \tfrac{h}{2}v,\quad
        v \leftarrow c\,v + \sqrt{(1-c^2)\,kT}\,\xi,\quad w \leftarrow w + \tfrac{h}{2}v,\quad c = e^{-\gamma h}.

    This is the BAOAB splitting, with another start of its cycle. The weights after a step are the positions of BAOAB,
    so their stationary distribution is more accurate than with ``"euler"``. Without friction and temperature the step
    is symplectic. The velocities after a step lag by half a kick, :math:`v_\mathrm{BAOAB} = v - \frac{h}{2} g(w)`.

    On a quadratic loss :math:`\frac{\lambda}{2}w^2`, or without a loss, these results are exact for any step:

    =============================  ==========================================  ====================================
    quantity                       ``"euler"``                                 ``"symplectic"``
    =============================  ==========================================  ====================================
    stable for                     :math:`h\lambda < 2`                        :math:`h^2\lambda < 4`
    :math:`\langle w^2\rangle`     :math:`kT / [\lambda (1 - h\lambda/2)]`     :math:`kT/\lambda`
    :math:`\langle v^2\rangle`     no velocity                                 :math:`kT`
    :math:`\langle w v\rangle`     no velocity                                 :math:`h\,kT/2`
    MSD of n steps without a loss  :math:`2\,kT\,h\,n`                         :math:`h^2 kT\,n \coth(\gamma h/2)`
    =============================  ==========================================  ====================================

    A step is the time h. The last entry is for :math:`n\gamma h \gg 1`. It is :math:`2\,(kT/\gamma)\,h n` for small
    :math:`\gamma h`. The velocities of BAOAB have :math:`\langle v_\mathrm{BAOAB}^2\rangle = kT\,(1 - h^2\lambda/4)`.

    The noise of minibatches comes in addition to :math:`kT`. Full batches give :math:`kT` alone. Let D be the
    ``gradient_noise`` of :class:`~lightning_glassy.GradientNoiseMonitor` and N the number of weights. If the noise is
    the same in all weights, the effective temperature at small steps is :math:`kT + h D/(2N)` for ``"euler"`` and
    :math:`kT + h D/(2N\gamma)` for ``"symplectic"``. D is the noise of an update. If an update averages the gradients
    of several batches, divide the measured D by their number. The ``noise_temperature`` of the monitor is the second
    term for ``torch.optim.SGD``, and it is not logged for other optimisers.

    The noise comes from separate generators, one per device of the weights. Dropout and shuffling draw the same random
    numbers as without noise. ``state_dict()`` holds the states of the generators, so a resumed training continues with
    the same bits. A ``copy.deepcopy`` of the optimiser draws the same noise as the original from there on. Under DDP,
    the ``seed`` must be the same in all processes.

    ``param_groups`` may differ in each option, and schedulers may change the options during the training. For example,
    ``optimizer.param_groups[0]["kT"] = 0.01`` in ``on_train_batch_start`` quenches a run. A step with ``kT=0`` draws no
    noise. It is a step of plain SGD, or of a motion with friction. A weight without a gradient (``None``) stays in
    place.

    Sources: Winter and Janssen 2024 (arXiv 2405.13098) for the temperature of a training. Leimkuhler and Matthews 2013
    (Appl. Math. Res. eXpress 2013, 34) for BAOAB.

    Args:
        params: parameters, or groups of parameters with options of their own.
        lr: the time step h.
        kT: temperature, in units of the loss. With a sum of the losses of replicas, it is the temperature of each.
        scheme: ``"euler"`` or ``"symplectic"``.
        friction: :math:`\gamma`, in units of one over the time. It is required for ``"symplectic"`` only.
        weight_decay: strength :math:`\kappa` of a term :math:`\frac{\kappa}{2}w^2` that is added to the loss.
        seed: seed of the noise.

    Raises:
        TypeError: an option is not a number.
        ValueError: an option is out of its range, or a parameter has complex or 16-bit weights, or is a shard. The
            sums of small noise and large weights would be rounded to the same weights in 16 bits.

    Example:
        >>> weights = torch.nn.Parameter(torch.zeros(100_000, device="cpu"))
        >>> optimizer = Langevin([weights], lr=0.5, kT=0.3)
        >>> for _ in range(50):
        ...     optimizer.zero_grad()
        ...     (0.5 * weights @ weights).backward()
        ...     optimizer.step()
        >>> exact = 0.3 / (1 - 0.5 / 2)
        >>> bool(abs(weights.var().item() / exact - 1) < 0.02)
        True
    """

    _seed: int
    _generators: dict[torch.device, torch.Generator]
    _saved: list[dict[str, Any]]

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        kT: float,
        scheme: Scheme = "euler",
        friction: float | None = None,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed={seed!r} must be an integer, for example seed=0")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed={seed} must be between 0 and 2**63 - 1")
        # The generators follow the order in which their devices appear. Names of devices differ between the processes
        # of DDP, and between a run and its continuation.
        self._seed, self._generators, self._saved = seed, {}, []
        options = {"lr": lr, "kT": kT, "scheme": scheme, "friction": friction, "weight_decay": weight_decay}
        super().__init__(params, options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters. Options that it does not have are those that the optimiser was made with.

        Args:
            param_group: ``"params"`` and options.

        Raises:
            TypeError: see :class:`Langevin`.
            ValueError: see :class:`Langevin`.
        """
        super().add_param_group(param_group)
        try:
            _check_options(self.param_groups[-1])
            _check_parameters(self.param_groups[-1]["params"])
        except Exception:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step. Return the loss of the closure.

        Args:
            closure: function that computes the gradients and returns the loss, or None if the gradients are there.

        Raises:
            ValueError: a gradient is sparse, or ``lr``, ``kT`` or ``friction`` has become negative or NaN.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, kT, decay = group["lr"], group["kT"], group["weight_decay"]
            if not (lr >= 0 and kT >= 0):
                raise ValueError(
                    f"lr={lr}, kT={kT} of a param group must not be negative or NaN: set both to 0 or more"
                )
            symplectic = group["scheme"] == "symplectic"
            if symplectic:
                if not group["friction"] >= 0:
                    raise ValueError(
                        f"friction={group['friction']} of a param group must not be negative: set 0 or more"
                    )
                kept = math.exp(-group["friction"] * lr)
                strength = math.sqrt(-math.expm1(-2 * group["friction"] * lr) * kT)
            else:
                strength = math.sqrt(2 * lr * kT)
            for w in group["params"]:
                generator = self._generator(w.device)  # also without a gradient, so that the order of devices is fixed
                if w.grad is None:
                    continue
                if w.grad.layout != torch.strided:
                    raise ValueError(
                        f"the gradient of a parameter of shape {tuple(w.shape)} is sparse, but the noise moves all "
                        "weights: use a dense gradient, for example nn.Embedding(..., sparse=False)"
                    )
                gradient = w.grad.add(w, alpha=decay) if decay else w.grad
                if not symplectic:
                    w.add_(gradient, alpha=-lr)
                    if strength:
                        w.add_(_normal(w, generator), alpha=strength)
                    continue
                state = self.state[w]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(w, device=w.device)
                velocity = state["velocity"]
                velocity.add_(gradient, alpha=-lr)
                w.add_(velocity, alpha=lr / 2)
                velocity.mul_(kept)
                if strength:
                    velocity.add_(_normal(w, generator), alpha=strength)
                w.add_(velocity, alpha=lr / 2)
        return loss

    def _generator(self, device: torch.device) -> torch.Generator:
        """Return the generator of a device. It continues the saved stream of its place in the order, if any."""
        if device in self._generators:
            return self._generators[device]
        place = len(self._generators)
        # Further devices need other noise. The text makes a seed that is far from the seeds of other optimisers.
        seed = self._seed if place == 0 else random.Random(f"{self._seed}/{place}").getrandbits(62)
        generator = torch.Generator(device).manual_seed(seed)
        if place < len(self._saved):
            saved = self._saved[place]
            if saved["device"] == device.type:
                generator.set_state(saved["state"].cpu())
            else:
                warnings.warn(
                    f"Langevin: the noise of the checkpoint was drawn on {saved['device']!r} and cannot go on on "
                    f"{device.type!r}. It starts anew from seed={self._seed}: give another seed for independent noise",
                    stacklevel=3,
                )
        self._generators[device] = generator
        return generator

    def _noise(self) -> list[dict[str, Any]]:
        """Return the device type and the state of each generator. Include saved streams that no step has used yet."""
        drawn = [{"device": d.type, "state": g.get_state()} for d, g in self._generators.items()]
        return drawn + self._saved[len(drawn) :]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimiser, with the states of the generators under the key ``"noise"``."""
        return {**super().state_dict(), _NOISE: self._noise()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, options of the groups included. The next step draws the noise that would have come next.

        Args:
            state_dict: result of :meth:`state_dict`.

        Raises:
            ValueError: the state has no noise, because it is from another optimiser.
        """
        if _NOISE not in state_dict:
            raise ValueError(
                f"state_dict has no {_NOISE!r}, so it is not the state of a Langevin optimiser: load the weights of "
                "this checkpoint only, or train on with its own optimiser"
            )
        super().load_state_dict(state_dict)
        self._generators, self._saved = {}, [dict(saved) for saved in state_dict[_NOISE]]

    def __getstate__(self) -> dict[str, Any]:
        # A copy and a pickle have generators of their own, at the same place of the stream.
        return {**super().__getstate__(), "_seed": self._seed, "_generators": {}, "_saved": self._noise()}


def _normal(w: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal numbers in the shape of a parameter. Its strides do not matter."""
    return torch.randn(w.shape, generator=generator, device=w.device, dtype=w.dtype)


def _check_options(group: dict[str, Any]) -> None:
    """Check the options of a group. Convert its numbers to floats, which any checkpoint can hold."""
    scheme, friction = group["scheme"], group["friction"]
    if scheme not in ("euler", "symplectic"):
        raise ValueError(f"scheme={scheme!r} is not one of 'euler', 'symplectic'")
    remedies = {
        "lr": "it is the time step, for example lr=0.01",
        "kT": "it is the temperature in units of the loss, for example kT=1e-4",
        "weight_decay": "weight_decay=0.0 is none",
    }
    if scheme == "symplectic":
        remedies["friction"] = "scheme='symplectic' needs it, for example friction=1.0"
    elif friction is not None:
        raise ValueError(f"friction={friction!r}: scheme='euler' has none. Leave it out, or use scheme='symplectic'")
    for name, remedy in remedies.items():
        value = group[name]
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name}={value!r} must be a number: {remedy}")
        if not 0 <= float(value) < math.inf:
            raise ValueError(f"{name}={value!r} must be finite and not negative: {remedy}")
        group[name] = float(value)
    if group["lr"] == 0:
        raise ValueError("lr=0 makes no step: give a positive time step, for example lr=0.01")
    if scheme == "symplectic" and group["friction"] == 0 < group["kT"]:
        raise ValueError(
            f"friction=0 with kT={group['kT']}: without friction there is no noise. Give a positive friction, or kT=0 "
            "for motion at constant energy"
        )


def _check_parameters(parameters: list[Tensor]) -> None:
    for w in parameters:
        shape = tuple(w.shape)
        if getattr(w, "_fsdp_flattened", False) or hasattr(w, "to_local"):
            raise ValueError(
                f"params: a parameter of shape {shape} is a shard of its process, and all processes would draw the "
                "same noise: use a single device, or strategy='ddp'"
            )
        if w.is_complex():
            raise ValueError(
                f"params: a parameter of shape {shape} has complex weights ({w.dtype}): store their real and imaginary "
                "parts in a real parameter, and use torch.view_as_complex"
            )
        if w.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"params: a parameter of shape {shape} has {w.dtype} weights, and rounding would swallow the noise: "
                "keep the weights in 32 bits, for example with precision='bf16-mixed' instead of 'bf16-true'"
            )
