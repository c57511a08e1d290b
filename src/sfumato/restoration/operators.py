"""Linear operators that damage: y = H x. One definition serves every method.

An operator says how it acts (`forward`), how its transpose acts (`adjoint`), and, where that is cheap, its singular value decomposition
H = U S Vᵀ. Operators along axes (`AveragePool`, `Bicubic`, `Grey`, separable blur) are Kronecker products of small matrices, whose
decompositions are those of the factors; circular blur is diagonal in the Fourier basis; what is small is decomposed as a matrix. The rest
goes by conjugate gradients. x and y keep their shapes [b, *x] and [b, *y]; `Linear` is an operator at one shape of x, acting on flat rows.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Shape = tuple[int, ...]

LARGEST_DENSE = 1024  # entries of x and of y up to which an operator is decomposed as a matrix
LEAST_SINGULAR = 1e-7  # relative to the largest: below, a singular value is zero


@dataclass(frozen=True)
class SVD:
    """H = U S Vᵀ on flat rows. V is orthogonal [d, d]; a singular value of 0 marks what y does not see.

    Args:
        singular: one for each column of V, 0 where H is blind.
        to_v: x [n, d] to Vᵀ x.
        from_v: its inverse, c [n, d] to V c.
        to_u: y [n, m] to Uᵀ y [n, d]; anything where the singular value is 0.
        from_u: c [n, d] to U c [n, m], of the entries whose singular value is not 0.
    """

    singular: Float[Tensor, "d"]
    to_v: Callable[[Tensor], Tensor]
    from_v: Callable[[Tensor], Tensor]
    to_u: Callable[[Tensor], Tensor]
    from_u: Callable[[Tensor], Tensor]

    @property
    def seen(self) -> Tensor:
        """Which columns of V have a singular value above 0."""
        return self.singular > 0


class Operator(ABC):
    """A linear map y = H x. `shape` is that of x without its rows, where the operator fixes it."""

    shape: Shape | None = None

    @abstractmethod
    def output(self, shape: Shape) -> Shape:
        """The shape of y for x of this shape.

        Raises:
            ValueError: x of a shape that the operator is not for.
        """

    @abstractmethod
    def input(self, shape: Shape) -> Shape:
        """The shape of x that gives y of this shape.

        Raises:
            ValueError: y of a shape that the operator does not give, or that does not say what x was.
        """

    @abstractmethod
    def forward(self, x: Float[Tensor, "b *x"]) -> Float[Tensor, "b *y"]:
        """H x."""

    @abstractmethod
    def adjoint(self, y: Float[Tensor, "b *y"]) -> Float[Tensor, "b *x"]:
        """Hᵀ y."""

    def svd(self, shape: Shape) -> SVD | None:
        """H = U S Vᵀ for x of this shape, or None where that is not cheap."""
        return None

    def read(self, y: Float[Tensor, "b *y"]) -> Float[Tensor, "b *y"]:
        """An observation in the shape that `forward` gives: a mask takes the damaged picture as well."""
        return y

    def at(self, shape: Shape) -> "Linear":
        """The operator for x of this shape, on flat rows."""
        return Linear(self, tuple(shape))

    def __matmul__(self, other: "Operator") -> "Operator":
        """H = self other: `other` acts first."""
        return Composed(self, other)


class Linear:
    """An operator at one shape of x, on flat rows: x [n, d], y [n, m]."""

    def __init__(self, operator: Operator, shape: Shape) -> None:
        """Binds the shape.

        Raises:
            ValueError: a shape that the operator is not for.
        """
        if operator.shape is not None and tuple(operator.shape) != shape:
            raise ValueError(f"the operator is for x of shape {list(operator.shape)}, the model's is {list(shape)}.")
        self.operator, self.shape, self.y_shape = operator, shape, tuple(operator.output(shape))
        self.d, self.m = math.prod(shape), math.prod(self.y_shape)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """H x."""
        return self.operator.forward(x.reshape(len(x), *self.shape)).reshape(len(x), self.m)

    def adjoint(self, y: Float[Tensor, "n m"]) -> Float[Tensor, "n d"]:
        """Hᵀ y."""
        return self.operator.adjoint(y.reshape(len(y), *self.y_shape)).reshape(len(y), self.d)

    @cached_property
    def svd(self) -> SVD | None:
        """H = U S Vᵀ where that is cheap, by the operator's own way or as a small matrix."""
        found = self.operator.svd(self.shape)
        if found is None and max(self.d, self.m) <= LARGEST_DENSE:
            return svd_of(self.matrix)
        return found

    @cached_property
    def matrix(self) -> Float[Tensor, "m d"]:
        """H as a matrix, in float64."""
        return self.forward(torch.eye(self.d, dtype=torch.float64)).mT.contiguous()

    def solve(self, r: Float[Tensor, "n m"], scale: Tensor | float, noise: Tensor | float) -> Float[Tensor, "n m"]:
        """(scale H Hᵀ + noise I)⁻¹ r, the pseudo-inverse where noise is 0; scale and noise are numbers, or one a row [n, 1]."""
        if (svd := self.svd) is None:
            return conjugate_gradients(lambda v: scale * self.forward(self.adjoint(v)) + noise * v, r)
        noise = torch.as_tensor(noise).to(r)
        along, s2 = svd.to_u(r), svd.singular.to(r).square()
        inside = svd.seen.to(r.device)
        share = torch.where(inside, along / torch.where(inside, scale * s2 + noise, 1), 0)
        seen = svd.from_u(share)
        beyond = r - svd.from_u(torch.where(inside, along, 0))  # what no x gives: noise alone
        return seen + torch.where(noise > 0, beyond / torch.where(noise > 0, noise, 1), 0)

    def log_determinant(self, scale: Tensor | float, noise: Tensor | float) -> Tensor:
        """log |scale H Hᵀ + noise I|, one a row (or one for all).

        Raises:
            ValueError: an operator without a cheap SVD.
        """
        if (svd := self.svd) is None:
            raise ValueError("this operator has no cheap SVD, so the determinant of a likelihood cannot be had; take another method.")
        noise = torch.as_tensor(noise, dtype=torch.float64)
        s2 = svd.singular[svd.seen].double().square()
        return (scale * s2 + noise).log().sum(-1) + (self.m - len(s2)) * noise.log().reshape(noise.shape[:1] if noise.ndim else ())


def svd_of(matrix: Float[Tensor, "m d"]) -> SVD:
    """The SVD of a matrix, with all of V."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=True)
    k, d = len(s), matrix.shape[1]
    s = torch.where(s > LEAST_SINGULAR * s.max().clamp(min=1e-300), s, 0)
    singular = torch.zeros(d, dtype=torch.float64)
    singular[:k] = s
    u = functional.pad(u[:, :k], (0, d - k))
    return SVD(
        singular,
        lambda x: x @ vh.mT.to(x),
        lambda c: c @ vh.to(c),
        lambda y: y @ u.to(y),
        lambda c: torch.where(singular.to(c) > 0, c, 0) @ u.mT.to(c),
    )


def conjugate_gradients(
    multiply: Callable[[Tensor], Tensor], r: Float[Tensor, "n m"], *, most: int = 200, tolerance: float = 1e-6
) -> Float[Tensor, "n m"]:
    """M⁻¹ r for a symmetric positive semi-definite M, each row on its own, to a residual of `tolerance` |r|. Hestenes & Stiefel (1952)."""
    x, residual, direction = torch.zeros_like(r), r, r
    square = residual.square().sum(1, keepdim=True)
    goal = tolerance**2 * square
    for _ in range(most):
        if bool((square <= goal).all()):
            break
        image = multiply(direction)
        curvature = (direction * image).sum(1, keepdim=True)
        going = (square > goal) & (curvature > 0)
        length = torch.where(going, square / torch.where(going, curvature, 1), 0)
        x, residual = x + length * direction, residual - length * image
        before, square = square, torch.where(going, residual.square().sum(1, keepdim=True), 0)
        direction = residual + square / before.clamp(min=torch.finfo(r.dtype).tiny) * direction
    return x


class Matrix(Operator):
    """y = A x for any matrix A [m, d]; x is read row by row where `shape` says that it is more than a vector."""

    def __init__(self, a: Float[Tensor, "m d"], *, shape: Shape | None = None) -> None:
        """Takes A.

        Raises:
            ValueError: A that is no finite matrix or is all zero, or a shape with another number of entries than A has columns.
        """
        a = torch.as_tensor(a)
        if a.ndim != 2 or not bool(torch.isfinite(a).all()):
            raise ValueError(
                f"Matrix takes a finite matrix [m, d], got shape {list(a.shape)}{' with values that are not finite' * (a.ndim == 2)}."
            )
        self.a = a.double()
        self.shape = (a.shape[1],) if shape is None else tuple(shape)
        if math.prod(self.shape) != a.shape[1]:
            raise ValueError(f"the matrix has {a.shape[1]} columns, but x of shape {list(self.shape)} has {math.prod(self.shape)} entries.")
        if not bool(a.any()):
            raise ValueError("the matrix is zero, so y says nothing of x.")

    def output(self, shape: Shape) -> Shape:
        """[m]."""
        if math.prod(shape) != self.a.shape[1]:
            raise ValueError(f"the matrix has {self.a.shape[1]} columns, but x of shape {list(shape)} has {math.prod(shape)} entries.")
        return (self.a.shape[0],)

    def input(self, shape: Shape) -> Shape:
        """The shape that the matrix was made for."""
        if shape != (len(self.a),):
            raise ValueError(f"the matrix has {len(self.a)} rows, but y has the shape {list(shape)}.")
        assert self.shape is not None
        return self.shape

    def forward(self, x: Float[Tensor, "b *x"]) -> Float[Tensor, "b m"]:
        """A x."""
        return x.flatten(1) @ self.a.mT.to(x)

    def adjoint(self, y: Float[Tensor, "b m"]) -> Float[Tensor, "b *x"]:
        """Aᵀ y."""
        assert self.shape is not None
        return (y @ self.a.to(y)).reshape(len(y), *self.shape)

    def svd(self, shape: Shape) -> SVD:
        """By the matrix."""
        return svd_of(self.a)


def Gaussian(rows: int, shape: Shape, *, seed: int = 0) -> Matrix:  # noqa: N802
    """Gaussian compressed sensing: `rows` random projections, entries N(0, 1/rows). Donoho (2006)."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rows, math.prod(shape), generator=generator, dtype=torch.float64) / math.sqrt(rows)
    return Matrix(a, shape=shape)


class Mask(Operator):
    """Sees the entries of x where the mask is true: y holds these [b, m], one after another. Inpainting.

    `restore` takes the damaged picture [b, *x] for y as well; what stands in hidden places is not looked at.
    """

    def __init__(self, mask: Tensor, *, shape: Shape | None = None) -> None:
        """Takes the mask.

        Args:
            mask: of the shape of x, or of its last axes (one mask for all channels, which then needs `shape`); true or above 0: seen.
            shape: of x.

        Raises:
            ValueError: a mask of another shape, or one that hides everything.
        """
        mask = torch.as_tensor(mask) > 0
        shape = tuple(mask.shape) if shape is None else tuple(shape)
        if not bool(mask.any()):
            raise ValueError("the mask hides everything, so y says nothing of x; true, or above 0, is what is seen.")
        try:
            self.mask = mask.expand(shape)
        except RuntimeError:
            raise ValueError(
                f"the mask has the shape {list(mask.shape)}, x has {list(shape)}; they must agree from the last axis on."
            ) from None
        self.shape, self.rows = shape, self.mask.reshape(-1).nonzero()[:, 0]

    def output(self, shape: Shape) -> Shape:
        """[m], the number of entries that are seen."""
        if tuple(shape) != self.shape:
            raise ValueError(f"the mask has the shape {list(self.mask.shape)}, x has {list(shape)}; make one of the size of x.")
        return (len(self.rows),)

    def input(self, shape: Shape) -> Shape:
        """The mask's shape."""
        if shape not in ((len(self.rows),), self.shape):
            raise ValueError(
                f"the mask is for x of shape {list(self.mask.shape)} and shows {len(self.rows)} entries; y has the shape {list(shape)}."
            )
        assert self.shape is not None
        return self.shape

    def forward(self, x: Float[Tensor, "b *x"]) -> Float[Tensor, "b m"]:
        """The entries that are seen."""
        return x.flatten(1)[:, self.rows.to(x.device)]

    def adjoint(self, y: Float[Tensor, "b m"]) -> Float[Tensor, "b *x"]:
        """The entries in their places, 0 elsewhere."""
        assert self.shape is not None
        x = y.new_zeros(len(y), self.mask.numel())
        return x.index_copy(1, self.rows.to(y.device), y).reshape(len(y), *self.shape)

    def read(self, y: Float[Tensor, "b *y"]) -> Float[Tensor, "b m"]:
        """The seen entries, of themselves or of a damaged picture."""
        return self.forward(y) if tuple(y.shape[1:]) == self.shape and tuple(y.shape[1:]) != (len(self.rows),) else y

    def svd(self, shape: Shape) -> SVD:
        """V = I; U puts the entries that are seen side by side."""
        flat = self.mask.reshape(-1)
        expand = lambda y: self.adjoint(y).flatten(1)  # noqa: E731
        return SVD(flat.double(), lambda x: x, lambda c: c, expand, lambda c: c[:, self.rows.to(c.device)])


class Axes(Operator):
    """A matrix along each of some axes of x, counted from the last (-1) backwards: a Kronecker product. Other axes are left alone."""

    def __init__(self, matrices: Callable[[Shape], Mapping[int, Tensor]], inverse: Callable[[Shape], Shape]) -> None:
        """Takes the matrices [out, in] by axis as a function of the shape of x, and the shape of x as a function of that of y."""
        self.matrices, self.inverse = matrices, inverse

    def output(self, shape: Shape) -> Shape:
        """The shape of x with the lengths of these axes changed."""
        after = list(shape)
        for axis, matrix in self.matrices(shape).items():
            after[axis] = matrix.shape[0]
        return tuple(after)

    def input(self, shape: Shape) -> Shape:
        """The shape of x."""
        return self.inverse(shape)

    def forward(self, x: Float[Tensor, "b *x"]) -> Float[Tensor, "b *y"]:
        """Each matrix along its axis."""
        return _along(x, self.matrices(tuple(x.shape[1:])))

    def adjoint(self, y: Float[Tensor, "b *y"]) -> Float[Tensor, "b *x"]:
        """Each transpose along its axis."""
        matrices = self.matrices(self.input(tuple(y.shape[1:])))
        return _along(y, {axis: matrix.mT for axis, matrix in matrices.items()})

    def svd(self, shape: Shape) -> SVD:
        """The Kronecker product of the factors' decompositions."""
        after, parts = self.output(shape), {}
        for axis, matrix in self.matrices(shape).items():
            u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=True)
            s = functional.pad(torch.where(s > LEAST_SINGULAR * s.max(), s, 0), (0, vh.shape[0] - len(s)))
            parts[axis] = functional.pad(u[:, : vh.shape[0]], (0, max(0, vh.shape[0] - u.shape[1]))), s, vh
        singular = torch.ones(shape, dtype=torch.float64)
        for axis, (_, s, _) in parts.items():
            singular = singular * s.reshape(-1, *(1,) * (-axis - 1))
        seen = singular > 0
        us, vhs = {axis: u for axis, (u, _, _) in parts.items()}, {axis: vh for axis, (_, _, vh) in parts.items()}
        turned = lambda some: {axis: each.mT for axis, each in some.items()}  # noqa: E731
        return SVD(
            singular.reshape(-1),
            lambda x: _along(x.reshape(-1, *shape), vhs).flatten(1),
            lambda c: _along(c.reshape(-1, *shape), turned(vhs)).flatten(1),
            lambda y: _along(y.reshape(-1, *after), turned(us)).flatten(1),
            lambda c: _along(torch.where(seen.to(c.device), c.reshape(-1, *shape), 0), us).flatten(1),
        )


def _along(x: Tensor, matrices: Mapping[int, Tensor]) -> Tensor:
    for axis, matrix in matrices.items():
        x = (x.movedim(axis, -1) @ matrix.mT.to(x)).movedim(-1, axis)
    return x


def AveragePool(factor: int) -> Axes:  # noqa: N802
    """The mean of each block of `factor` entries along every axis behind the channels: down-sampling without overlap.

    Raises:
        ValueError: a factor below 2; when used, one that does not divide the picture.
    """
    _refuse_factor(factor)
    return _resizing(factor, lambda n: torch.eye(n // factor, dtype=torch.float64).repeat_interleave(factor, 1) / factor)


def Bicubic(factor: int) -> Axes:  # noqa: N802
    """Bicubic down-sampling with antialiasing, as Pillow's and torch's `interpolate(antialias=True)`. Keys (1981), a = -0.5.

    The kernel is stretched by the factor; at the border its weights are those inside, made to sum to 1.

    Raises:
        ValueError: a factor below 2; when used, one that does not divide the picture.
    """
    _refuse_factor(factor)

    def matrix(n: int) -> Tensor:
        centres = (torch.arange(n // factor, dtype=torch.float64) + 0.5) * factor
        t = ((torch.arange(n, dtype=torch.float64) + 0.5) - centres[:, None]).abs() / factor
        near, far = (1.5 * t - 2.5) * t**2 + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
        weight = torch.where(t < 1, near, torch.where(t < 2, far, 0))
        return weight / weight.sum(1, keepdim=True)

    return _resizing(factor, matrix)


def _refuse_factor(factor: int) -> None:
    if factor < 2:
        raise ValueError(f"the factor of down-sampling must be at least 2, got {factor}.")


def _resizing(factor: int, matrix: Callable[[int], Tensor]) -> Axes:
    def matrices(shape: Shape) -> dict[int, Tensor]:
        if len(shape) < 2:
            raise ValueError(f"down-sampling needs an axis behind the channels, got x of shape {list(shape)}; take a Matrix for vectors.")
        if any(n % factor for n in shape[1:]):
            raise ValueError(f"the factor {factor} does not divide the size {' × '.join(map(str, shape[1:]))} of x; take one that does.")
        return {axis - len(shape): matrix(shape[axis]) for axis in range(1, len(shape))}

    return Axes(matrices, lambda shape: (shape[0], *(n * factor for n in shape[1:])))


def Grey(weights: tuple[float, ...] = (0.299, 0.587, 0.114)) -> Axes:  # noqa: N802
    """A weighted sum of the channels (those of Rec. 601 for three colours): y has one channel. Colourisation.

    Raises:
        ValueError: weights that are all zero; when used, another number of channels.
    """
    matrix = torch.tensor([weights], dtype=torch.float64)
    if not bool(matrix.any()):
        raise ValueError("the weights of Grey are all zero, so y says nothing of x.")

    def matrices(shape: Shape) -> dict[int, Tensor]:
        if shape[0] != len(weights):
            raise ValueError(f"Grey has weights for {len(weights)} channels, x has {shape[0]}.")
        return {-len(shape): matrix}

    def inverse(shape: Shape) -> Shape:
        if shape[0] != 1:
            raise ValueError(f"a grey picture has one channel, y has {shape[0]}.")
        return (len(weights), *shape[1:])

    return Axes(matrices, inverse)


class Blur(Operator):
    """Convolution of each channel with a kernel, y of the size of x: y[i] = Σ_j kernel[j] x[i - j + size // 2].

    Args:
        kernel: [*k], with as many axes as x has behind its channels; odd or even sizes.
        padding: "circular", "zeros", "reflect" (the border's own pixel once, as NumPy's "reflect") or "replicate".

    Raises:
        ValueError: a kernel that sums to nothing or is not finite, or an unknown padding; when used, another number of axes, or a kernel
            larger than x.
    """

    def __init__(self, kernel: Tensor, *, padding: str = "circular") -> None:
        """Takes the kernel as it is: one that sums to 1 keeps the mean."""
        kernel = torch.as_tensor(kernel)
        if kernel.ndim == 0 or not bool(torch.isfinite(kernel).all()) or abs(float(kernel.sum())) < 1e-12:
            raise ValueError(
                f"the kernel of a blur must be finite and not sum to 0, got shape {list(kernel.shape)} with the sum "
                f"{float(kernel.sum()):.3g}."
            )
        if padding not in ("circular", "zeros", "reflect", "replicate"):
            raise ValueError(f'the padding of a blur is "circular", "zeros", "reflect" or "replicate", got "{padding}".')
        self.kernel, self.padding = kernel.double(), padding

    def output(self, shape: Shape) -> Shape:
        """As x."""
        if len(shape) != self.kernel.ndim + 1:
            raise ValueError(f"the kernel has {self.kernel.ndim} axes, x of shape {list(shape)} has {len(shape) - 1} behind its channels.")
        if any(k > n for k, n in zip(self.kernel.shape, shape[1:], strict=True)):
            raise ValueError(f"the kernel {list(self.kernel.shape)} is larger than x of shape {list(shape)}.")
        return shape

    def input(self, shape: Shape) -> Shape:
        """As y."""
        return self.output(shape)

    def forward(self, x: Float[Tensor, "b *x"]) -> Float[Tensor, "b *x"]:
        """Convolves."""
        self.output(tuple(x.shape[1:]))
        if self.padding == "circular":
            return self._by_fourier(x, self._transfer(x))
        return self._padded(x)

    def adjoint(self, y: Float[Tensor, "b *x"]) -> Float[Tensor, "b *x"]:
        """The transpose: a correlation, what was padded added back."""
        if self.padding == "circular":
            return self._by_fourier(y, self._transfer(y).conj())
        return torch.func.vjp(self._padded, torch.zeros_like(y))[1](y)[0]

    def svd(self, shape: Shape) -> SVD | None:
        """Of a circular blur: V is Hartley's basis, U = V times the phases. Of a padded one whose kernel is a product: along the axes."""
        self.output(shape)
        if self.padding != "circular":
            return None if (axes := self._separated(shape)) is None else axes.svd(shape)
        like = torch.empty(1, *shape, dtype=torch.float64)
        transfer = self._transfer(like)
        size = transfer.abs()
        size = torch.where(size > LEAST_SINGULAR * size.max(), size, 0)
        phase = torch.where(size > 0, transfer / torch.where(size > 0, size, 1), 0)
        grid = lambda x: x.reshape(-1, *shape)  # noqa: E731
        hartley = lambda x: _hartley(grid(x)).flatten(1)  # noqa: E731
        return SVD(
            size.expand(shape).reshape(-1),
            hartley,
            hartley,
            lambda y: _hartley(self._by_fourier(grid(y), phase.conj())).flatten(1),
            lambda c: self._by_fourier(_hartley(grid(c)), phase).flatten(1),
        )

    def _transfer(self, x: Tensor) -> Tensor:
        """The Fourier transform of the kernel on the grid of x, its centre at the origin."""
        room = torch.zeros(x.shape[2:], dtype=torch.float64)
        room[tuple(slice(k) for k in self.kernel.shape)] = self.kernel
        room = room.roll([-(k // 2) for k in self.kernel.shape], dims=list(range(room.ndim)))
        return torch.fft.fftn(room)

    def _by_fourier(self, x: Tensor, transfer: Tensor) -> Tensor:
        dims = list(range(2, x.ndim))
        return torch.fft.ifftn(torch.fft.fftn(x, dim=dims) * transfer.to(device=x.device, dtype=x.dtype.to_complex()), dim=dims).real

    def _padded(self, x: Tensor) -> Tensor:
        sides = [side for k in reversed(self.kernel.shape) for side in (k - 1 - k // 2, k // 2)]
        mode = "constant" if self.padding == "zeros" else self.padding
        padded = functional.pad(x, sides, mode=mode).flatten(0, 1)[:, None]
        convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[self.kernel.ndim]
        return convolve(padded, self.kernel.flip(list(range(self.kernel.ndim)))[None, None].to(x)).reshape(x.shape)

    def _separated(self, shape: Shape) -> Axes | None:
        """The same blur along each axis in turn, where the kernel is a product."""
        if self.kernel.ndim == 1:
            parts = [self.kernel]
        elif self.kernel.ndim == 2:
            u, s, vh = torch.linalg.svd(self.kernel)
            if bool((s[1:] > 1e-9 * s[0]).any()):
                return None
            parts = [u[:, 0] * s[0], vh[0]]
        else:
            return None
        matrices = {axis - len(parts): Blur._line(part, self.padding, shape[1 + axis]) for axis, part in enumerate(parts)}
        return Axes(lambda _: matrices, lambda each: each)

    @staticmethod
    def _line(part: Tensor, padding: str, n: int) -> Tensor:
        """The matrix of a blur along one axis of n."""
        line = object.__new__(Blur)  # a factor may sum to nothing where the product does not
        line.kernel, line.padding = part, padding
        return line._padded(torch.eye(n, dtype=torch.float64)[:, None])[:, 0].mT.contiguous()


def _hartley(x: Tensor) -> Tensor:
    """The orthonormal Hartley transform over the axes behind the channels: its own inverse."""
    transformed = torch.fft.fftn(x, dim=list(range(2, x.ndim)), norm="ortho")
    return transformed.real - transformed.imag


class Hadamard(Operator):
    """Compressed sensing by some rows of the orthonormal Walsh-Hadamard matrix, after random changes of sign.

    Args:
        rows: how many of the d rows, drawn without replacement.
        shape: of x, whose number of entries is a power of 2.
        seed: of the rows and signs.

    Raises:
        ValueError: another number of entries, or of rows.
    """

    def __init__(self, rows: int, shape: Shape, *, seed: int = 0) -> None:
        """Draws rows and signs."""
        d = math.prod(shape)
        if d & (d - 1):
            raise ValueError(f"a Hadamard transform needs a power of 2 of entries, x of shape {list(shape)} has {d}; take Gaussian.")
        if not 1 <= rows <= d:
            raise ValueError(f"rows must be 1 to {d}, the entries of x, got {rows}.")
        generator = torch.Generator().manual_seed(seed)
        self.shape = tuple(shape)
        self.rows = torch.randperm(d, generator=generator)[:rows].sort().values
        self.signs = torch.randint(2, (d,), generator=generator) * 2.0 - 1

    def output(self, shape: Shape) -> Shape:
        """[rows]."""
        return (len(self.rows),)

    def input(self, shape: Shape) -> Shape:
        """As it was made for."""
        if shape != (len(self.rows),):
            raise ValueError(f"the operator gives {len(self.rows)} numbers, y has the shape {list(shape)}.")
        assert self.shape is not None
        return self.shape

    def forward(self, x: Float[Tensor, "b *x"]) -> Float[Tensor, "b m"]:
        """Signs, transform, rows."""
        return self._turn(x.flatten(1) * self.signs.to(x))[:, self.rows.to(x.device)]

    def adjoint(self, y: Float[Tensor, "b m"]) -> Float[Tensor, "b *x"]:
        """The same backwards."""
        assert self.shape is not None
        return (self._turn(self._placed(y)) * self.signs.to(y)).reshape(len(y), *self.shape)

    def svd(self, shape: Shape) -> SVD:
        """Its rows are orthonormal."""
        singular = torch.zeros(len(self.signs), dtype=torch.float64)
        singular[self.rows] = 1
        return SVD(
            singular,
            lambda x: self._turn(x * self.signs.to(x)),
            lambda c: self._turn(c) * self.signs.to(c),
            self._placed,
            lambda c: c[:, self.rows.to(c.device)],
        )

    def _placed(self, y: Tensor) -> Tensor:
        return y.new_zeros(len(y), len(self.signs)).index_copy(1, self.rows.to(y.device), y)

    @staticmethod
    def _turn(x: Tensor) -> Tensor:
        """The orthonormal Walsh-Hadamard transform of each row, by butterflies; its own inverse."""
        n, d = x.shape
        step = 1
        while step < d:
            pairs = x.reshape(n, d // (2 * step), 2, step)
            x = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2)
            step *= 2
        return x.reshape(n, d) / math.sqrt(d)


class Function(Operator):
    """A linear map given by two functions, forward and adjoint; on entry it is checked that they are linear and each other's transpose.

    Args:
        forward: x [b, *x] to y [b, *y].
        adjoint: y [b, *y] to x [b, *x].
        shape: of x.

    Raises:
        ValueError: <H x, y> and <x, Hᵀ y> differ by more than 1e-4 of their size on random x and y, or forward is not linear.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor], *, shape: Shape) -> None:
        """Checks the pair on random x and y."""
        self._forward, self._adjoint, self.shape = forward, adjoint, tuple(shape)
        generator = torch.Generator().manual_seed(0)
        draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
        x = draw(3, *shape)
        hx = forward(x)
        y = draw(*hx.shape)
        back = adjoint(y)
        if back.shape != x.shape:
            raise ValueError(f"the adjoint must map y back to the shape {list(shape)} of x, it gives {list(back.shape[1:])}.")
        forwards, backwards = (hx * y).flatten(1).sum(1), (x * back).flatten(1).sum(1)
        size = (hx.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)).clamp(min=1e-30)
        if bool(((forwards - backwards).abs() > 1e-4 * size).any()):
            raise ValueError(
                f"adjoint is not the transpose of forward: <H x, y> = {forwards[0]:.6g}, <x, Hᵀ y> = {backwards[0]:.6g} on random x and y."
            )
        two = forward(2 * x[:1] - 3 * x[1:2])
        if bool(((two - 2 * hx[:1] + 3 * hx[1:2]).abs() > 1e-4 * hx.abs().max().clamp(min=1e-30)).any()):
            raise ValueError("forward is not linear: H(2a - 3b) is not 2 H a - 3 H b; take an offset off y first.")
        self._y_shape = tuple(hx.shape[1:])

    def output(self, shape: Shape) -> Shape:
        """As forward gave it."""
        return self._y_shape

    def input(self, shape: Shape) -> Shape:
        """As it was made for."""
        if shape != self._y_shape:
            raise ValueError(f"the operator gives y of shape {list(self._y_shape)}, got {list(shape)}.")
        assert self.shape is not None
        return self.shape

    def forward(self, x: Float[Tensor, "b *x"]) -> Float[Tensor, "b *y"]:
        """H x."""
        return self._forward(x)

    def adjoint(self, y: Float[Tensor, "b *y"]) -> Float[Tensor, "b *x"]:
        """Hᵀ y."""
        return self._adjoint(y)


class Identity(Operator):
    """y = x: denoising."""

    def output(self, shape: Shape) -> Shape:
        """As x."""
        return shape

    def input(self, shape: Shape) -> Shape:
        """As y."""
        return shape

    def forward(self, x: Float[Tensor, "b *x"]) -> Float[Tensor, "b *x"]:
        """x."""
        return x

    def adjoint(self, y: Float[Tensor, "b *x"]) -> Float[Tensor, "b *x"]:
        """y."""
        return y

    def svd(self, shape: Shape) -> SVD:
        """All ones."""
        same = lambda x: x  # noqa: E731
        return SVD(torch.ones(math.prod(shape), dtype=torch.float64), same, same, same, same)


class Composed(Operator):
    """`outer inner`: inner acts first."""

    def __init__(self, outer: Operator, inner: Operator) -> None:
        """Joins the two; shapes that they fix must agree.

        Raises:
            ValueError: they do not.
        """
        self.outer, self.inner = outer, inner
        self.shape = inner.shape
        if self.shape is None and outer.shape is not None:
            self.shape = inner.input(outer.shape)
        if self.shape is not None:
            self.output(self.shape)

    def output(self, shape: Shape) -> Shape:
        """Through both."""
        between = self.inner.output(shape)
        if self.outer.shape is not None and tuple(self.outer.shape) != between:
            raise ValueError(f"the outer operator is for the shape {list(self.outer.shape)}, the inner one gives {list(between)}.")
        return self.outer.output(between)

    def input(self, shape: Shape) -> Shape:
        """Through both, backwards."""
        return self.inner.input(self.outer.input(shape))

    def forward(self, x: Float[Tensor, "b *x"]) -> Float[Tensor, "b *y"]:
        """outer(inner(x))."""
        return self.outer.forward(self.inner.forward(x))

    def adjoint(self, y: Float[Tensor, "b *y"]) -> Float[Tensor, "b *x"]:
        """innerᵀ(outerᵀ(y))."""
        return self.inner.adjoint(self.outer.adjoint(y))

    def read(self, y: Float[Tensor, "b *y"]) -> Float[Tensor, "b *y"]:
        """As the outer operator reads it."""
        return self.outer.read(y)

    def __repr__(self) -> str:
        """Both."""
        return f"{self.outer!r} @ {self.inner!r}"


def compose(*operators: Operator) -> Operator:
    """The product of operators, the last acting first."""
    return reduce(lambda a, b: a @ b, operators)
