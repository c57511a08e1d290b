"""Checks on the data."""

import hashlib
import math

import numpy as np
import torch

from sfumato.data.arrays import seem_last
from sfumato.data.options import DatasetsData, FolderData
from sfumato.doctor.check import ERROR, NOTE, WARNING, Reading, above, below, check, share
from sfumato.doctor.neighbours import features, nearest
from sfumato.doctor.plan import Plan

MOST_ROWS = 100_000  # rows hashed to find copies
ENOUGH = 100  # fewer examples are too few for statistics of neighbours


@check("data-refused", ERROR, above(0, "data that the loader refuses cannot be used for training"))
def data_refused(plan: Plan) -> Reading | None:
    """Whether the loader refuses the data."""
    if plan.source is not None or not plan.refusal:
        return None
    return Reading(
        1.0, plan.refusal, "The data cannot be read, so no other check of them was possible.", "Fix the file or option named in the error."
    )


@check("captions-unused", NOTE, above(0, "whoever wrote captions may expect the model to use them"))
def captions_unused(plan: Plan) -> Reading | None:
    """Number of captions that come with the data; no kind of model uses them yet."""
    if plan.dataset is None:
        return None
    count = len(plan.dataset.captions or ())
    change = "--set data.captions=false" if isinstance(plan.recipe.data, FolderData) else "--set data.caption=''"
    return Reading(
        float(count),
        f"{count} images have a caption.",
        "Captions are read but not used: the model learns from the images, and from classes if there are any.",
        f"{change} skips them; for conditional samples, sort the images into class folders, or name a column of labels.",
    )


@check("broken-files", WARNING, above(0.005, "one file in 200 can happen; more is a bad copy or an incomplete download"))
def broken_files(plan: Plan) -> Reading | None:
    """Share of the image files that cannot be read."""
    if plan.dataset is None:
        return None
    broken, whole = len(plan.dataset.skipped), len(plan.dataset)
    return Reading(
        broken / (broken + whole),
        f"{broken} of {broken + whole} files cannot be read: {'; '.join(plan.dataset.skipped[:3])}{' …' if broken > 3 else ''}.",
        "Training refuses such a folder." if plan.refusal else "They are left out; the remaining images may be biased.",
        "Repair, download again or remove these files.",
    )


@check(
    "constant-data", ERROR, below(0.01, "a standard deviation of 0.01 in [-1, 1] is 1.3 of 255 grey levels; the darkest real sets have 0.2")
)
def constant_data(plan: Plan) -> Reading | None:
    """Standard deviation of all entries of x0 together."""
    if plan.dataset is None:
        return None
    std = float(plan.x0.std())
    return Reading(
        std,
        f"All entries together have a standard deviation of {std:.2g} in x0 (usual: 0.5 for images, 1 for other data).",
        "The data are nearly constant: there is nothing to learn, and samples will be uniform grey.",
        "Check the path and how the files were written: images in [0, 1] saved as bytes become 0 and 1; multiply by 255 before saving.",
    )


@check("constant-features", WARNING, above(0, "a feature that never changes is a column read by mistake; real features vary"))
def constant_features(plan: Plan) -> Reading | None:
    """Share of the features of a table that never change."""
    if plan.dataset is None or plan.dataset.is_image or plan.x0.ndim != 2 or plan.x0.shape[1] < 2:
        return None
    dead = (plan.x0.std(0) < 1e-6).nonzero().flatten().tolist()
    return Reading(
        len(dead) / plan.x0.shape[1],
        f"{len(dead)} of {plan.x0.shape[1]} features are constant: number {', '.join(map(str, dead[:8]))}.",
        "The network spends capacity on a constant, and losses average over it.",
        "Remove these columns before saving the array.",
    )


@check(
    "near-precision",
    WARNING,
    above(0.01, "rounding of a hundredth of the std is visible as stripes; float64 seconds since 1970 that spread over a minute have 1e-8"),
)
def near_precision(plan: Plan) -> Reading | None:
    """Distance of neighbouring numbers of the data's type at a channel's (or column's) values, relative to its standard deviation."""
    if plan.dataset is None or plan.dataset.is_image:
        return None
    scaling, dtype = plan.dataset.scaling, plan.dataset.values.dtype.type
    deviation = plan.x0.transpose(0, 1).flatten(1).double().std(1, correction=0).numpy() * np.asarray(scaling.scale)
    step = np.spacing(np.abs(np.asarray(scaling.shift)).astype(dtype)).astype(np.float64) + np.zeros_like(deviation)
    steps = np.divide(step, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    worst = int(steps.argmax())
    name = f'Column "{plan.dataset.columns[worst]}"' if plan.dataset.columns else f"Channel {worst}"
    return Reading(
        float(steps[worst]),
        f"{name} varies by {deviation[worst]:.3g}, but neighbouring {plan.dataset.values.dtype} numbers there are {step[worst]:.3g} apart.",
        "The data have few different values: their differences were rounded away when they were saved.",
        "Save them as float64, or subtract an offset before converting them to " + f"{plan.dataset.values.dtype}.",
    )


@check("sliver-of-range", WARNING, below(0.3, "real image sets use all of 0 … 255; 12-bit data cut to bytes use a sixteenth"))
def sliver_of_range(plan: Plan) -> Reading | None:
    """Share of 0 … 255 between the 0.1% and the 99.9% quantile of the pixels."""
    if plan.dataset is None or not plan.dataset.is_bytes:
        return None
    low, high = np.quantile(plan.dataset.scaling.decode(plan.x0), [0.001, 0.999])
    return Reading(
        (high - low) / 255,
        f"The pixels lie between {low:.0f} and {high:.0f} of 0 … 255.",
        "Bytes are scaled as if they used the whole range, so x0 has a small variance and a large offset: the network sees almost "
        "nothing but noise, and samples become black, white or grey.",
        "Stretch the values to 0 … 255 before saving (images in [0, 1]: times 255), or save them as floats or 16 bits, which are "
        "standardised.",
    )


@check("outliers", WARNING, above(20, "normal data reach 6 in 10⁹ draws, heavy tails 10; fill values such as -9999 reach hundreds"))
def outliers(plan: Plan) -> Reading | None:
    """Largest distance of a float entry from the mean, in standard deviations of all but the farthest 0.1%."""
    if plan.dataset is None or plan.dataset.is_image:
        return None
    flat = plan.x0.flatten(2).transpose(0, 1).flatten(1) if plan.x0.ndim > 2 else plan.x0.T  # one row a feature
    middle = flat.median(1, keepdim=True).values
    kept = torch.quantile((flat - middle).abs(), 0.99, dim=1).clamp(min=1e-6)
    worst = ((flat - middle).abs().amax(1) / kept * 2.6).max()  # the 99% quantile of a normal distribution is 2.6
    return Reading(
        float(worst),
        f"An entry is {float(worst):.0f} standard deviations away from the others' mean.",
        "One such value determines the scale of its feature: all others become nearly equal, and the loss is that of the outlier.",
        "Look for fill values (-9999, 1e30) or broken rows, and remove or clip them.",
    )


@check(
    "unlike-scales",
    WARNING,
    below(0.03, "with data.scaling=all there is one scale for all channels; below 1:30 a channel has no weight in the loss"),
)
def unlike_scales(plan: Plan) -> Reading | None:
    """Standard deviation of the narrowest channel of float data relative to that of the widest."""
    if plan.dataset is None or plan.dataset.is_image or plan.x0.ndim < 3 or plan.x0.shape[1] < 2:
        return None
    spread = plan.x0.transpose(0, 1).flatten(1).std(1)
    ratio = float(spread.min() / spread.max())
    return Reading(
        ratio,
        f"Channel {int(spread.argmin())} has a standard deviation of {float(spread.min()):.2g} in x0, channel {int(spread.argmax())} "
        f"one of {float(spread.max()):.2g}.",
        "All channels have the same scale, so noise hides the narrow ones and they have no weight in the loss.",
        "--set data.scaling=channel",
    )


@check("floats-for-images", WARNING, above(0, "floats of the shape [n, h, w, 1|3|4] are images with channels last in every case we know"))
def floats_for_images(plan: Plan) -> Reading | None:
    """Whether float data have the shape of images with channels last."""
    if plan.dataset is None or plan.dataset.is_image or plan.x0.ndim != 4:
        return None
    shape = list(plan.dataset.values.shape)
    return Reading(
        float(plan.dataset.scaling.channels == "first" and seem_last(plan.dataset.values)),
        f"The values are {plan.dataset.values.dtype} {shape}.",
        f"Float tensors have their channels on axis 1: these images would be read as images with {shape[1]} channels and {shape[3]} pixels "
        "across.",
        "--set data.channels=last, or save bytes: np.save(path, (255 * values).round().astype(np.uint8)) for values in [0, 1].",
    )


@check("grey-as-rgb", WARNING, below(0.002, "JPEG moves one pixel in thousands of a grey photo off grey by more than 4 levels"))
def grey_as_rgb(plan: Plan) -> Reading | None:
    """Share of the pixels of RGB images whose channels differ by more than 4 of 255 levels."""
    if plan.dataset is None or not plan.dataset.is_bytes or plan.x0.shape[1] < 3:
        return None
    rgb = plan.x0[:, :3]
    coloured = float(((rgb.amax(1) - rgb.amin(1)) > 4 / 127.5).float().mean())
    return Reading(
        coloured,
        f"{share(coloured)} of the pixels have any colour.",
        "Grey images are stored as RGB: the network learns three copies of one channel, and samples get a colour cast if they differ.",
        "--set data.channels=1" if isinstance(plan.recipe.data, FolderData | DatasetsData) else "Save one channel: values[..., :1].",
    )


@check("alpha-channel", WARNING, above(0, "users who want transparency ask for four channels"))
def alpha_channel(plan: Plan) -> Reading | None:
    """Whether the images have a fourth channel that was not asked for, or that is constant."""
    if plan.dataset is None or not plan.dataset.is_image:
        return None
    is_fourth = plan.x0.shape[1] == 4
    constant = is_fourth and float(plan.x0[:, 3].std()) < 1e-6
    return Reading(
        float(is_fourth and (constant or getattr(plan.recipe.data, "channels", None) != 4)),
        f"Images have {plan.x0.shape[1]} channels" + ("; the fourth is constant." if constant else "."),
        "The fourth channel is learned like a colour, as are the invisible pixels behind it, and viewers will show samples as transparent.",
        "--set data.channels=3"
        if isinstance(plan.recipe.data, FolderData | DatasetsData)
        else "Put the images on a background colour and save three channels: values[..., :3].",
    )


@check("copies", WARNING, above(0.02, "public data sets have less than 0.5% exact copies"))
def copies(plan: Plan) -> Reading | None:
    """Share of the examples that are an exact copy of an earlier one."""
    if plan.dataset is None:
        return None
    values = plan.dataset.values[:MOST_ROWS]
    seen = {hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=16).digest() for row in values}
    again = 1 - len(seen) / len(values)
    return Reading(
        again,
        f"{len(values) - len(seen)} of {len(values)} examples are exact copies of another.",
        "Repeated examples are memorised first, and sampled as often as they occur.",
        "Remove the copies (fdupes -rdN FOLDER for files, np.unique(values, axis=0) for arrays).",
    )


@check(
    "near-copies",
    WARNING,
    above(0.02, "a tenth of the usual distance to a neighbour is the same image saved twice; other neighbours stay above a quarter"),
)
def near_copies(plan: Plan) -> Reading | None:
    """Share of the examples, without exact copies, within a tenth of the median nearest-neighbour distance of another."""
    if plan.dataset is None or math.prod(plan.x0.shape[1:]) < 16 or len(plan.x0) < ENOUGH:
        return None
    distance, _ = nearest(features(plan.x0.unique(dim=0)))
    close = float((distance < 0.1 * distance.median()).float().mean())
    return Reading(
        close,
        f"{share(close)} of {len(distance)} examples have a neighbour ten times nearer than usual.",
        "The same image was stored several times with small changes (saved again, frames of one film): it will be memorised.",
        "Keep one of each; compare downscaled copies of the images to find them.",
    )


@check(
    "tiny-set",
    WARNING,
    above(400, "the built-in recipes show each example 80 to 100 times; at 400, with more weights than numbers, it is memorised"),
)
def tiny_set(plan: Plan) -> Reading | None:
    """How often each example is shown, if the network has more weights than the data have numbers."""
    if plan.source is None:
        return None
    training, examples = plan.recipe.training, len(plan.rows[0])
    numbers, often = examples * math.prod(plan.x0.shape[1:]), training.steps * training.batch / examples
    fewer = max(1, round(100 * examples / min(training.batch, examples)))
    return Reading(
        often if plan.parameters > numbers else 0.0,
        f"{examples} examples ({numbers:,} numbers) are each shown {often:.0f} times to {plan.parameters:,} weights.",
        "The network has enough weights and time to memorise the data: samples will be copies of training examples.",
        f"--set training.steps={fewer} --set training.held_out=0.1"
        + (f" --set training.batch={examples}" if training.batch > examples else "")
        + ", a smaller network, or more data"
        + (" (--set training.flip=true doubles images that can be mirrored)." if plan.source.spec.is_image and not training.flip else "."),
    )


@check("batch-above-data", WARNING, above(1, "a batch larger than the data has every example, some twice"))
def batch_above_data(plan: Plan) -> Reading | None:
    """The batch size relative to the number of training examples."""
    if plan.source is None:
        return None
    batch, examples = plan.recipe.training.batch, len(plan.rows[0])
    return Reading(
        batch / examples,
        f"A batch of {batch} is drawn from {examples} examples.",
        "Every step sees the whole data set: a larger batch only costs time.",
        f"--set training.batch={max(1, examples // 4)}",
    )


@check(
    "class-imbalance",
    WARNING,
    above(20, "Oxford's flowers, considered unbalanced, have 6.5; at 20 a class is seen a twentieth as often"),
)
def class_imbalance(plan: Plan) -> Reading | None:
    """Number of examples of the most common class relative to the rarest class that has any."""
    if plan.dataset is None or plan.labels is None or len(plan.dataset.classes) < 2:
        return None
    counts = np.bincount(plan.labels, minlength=len(plan.dataset.classes))
    some = np.where(counts > 0, counts, counts.max())
    names = plan.dataset.classes
    return Reading(
        float(counts.max() / some.min()),
        f'"{names[int(counts.argmax())]}" has {counts.max()} examples, "{names[int(some.argmin())]}" has {some.min()}.',
        "The rare classes are seen so rarely that their samples will look like those of common classes.",
        "Repeat rare examples, remove common ones, or merge classes.",
    )


@check("rare-classes", WARNING, below(8, "fewer than eight images do not show what varies in a class"))
def rare_classes(plan: Plan) -> Reading | None:
    """Number of training examples of the rarest class."""
    if plan.dataset is None or plan.labels is None or len(plan.dataset.classes) < 2:
        return None
    counts, names = np.bincount(plan.labels, minlength=len(plan.dataset.classes)), plan.dataset.classes
    rare = [f'"{names[i]}" ({counts[i]})' for i in np.flatnonzero(counts < 8)]
    return Reading(
        float(counts.min()),
        f"{len(rare)} of {len(counts)} classes have fewer than 8 training examples: {', '.join(rare[:6])}{' …' if len(rare) > 6 else ''}.",
        "They can only be memorised, or not learned at all; `sample` still draws a class without examples, but as noise.",
        "Remove or merge these classes, or number the labels 0, 1, … without gaps.",
    )


@check("one-class", WARNING, below(2, "a constant label carries no information"))
def one_class(plan: Plan) -> Reading | None:
    """Number of classes that occur among the labels."""
    if plan.dataset is None or plan.labels is None:
        return None
    present = len(np.unique(plan.labels))
    return Reading(
        float(present),
        f"Only {present} class occurs among the labels.",
        "The label carries no information, so guidance has no effect.",
        "Save the data without labels, or check which column they were read from.",
    )


@check("empty-labels", WARNING, below(4, "shuffled labels stay within 3 standard errors of chance in 997 of 1000 sets"))
def empty_labels(plan: Plan) -> Reading | None:
    """Standard errors by which nearest neighbours share a label more often than by chance."""
    if plan.dataset is None or plan.labels is None or len(np.unique(plan.labels)) < 2 or len(plan.labels) < 2 * ENOUGH:
        return None
    x0, labels = plan.some()
    assert labels is not None
    _, neighbour = nearest(features(x0))
    chance = float((torch.bincount(labels).double() / len(labels)).square().sum())
    agree = float((labels == labels[neighbour]).double().mean())
    score = (agree - chance) / math.sqrt(chance * (1 - chance) / len(labels))
    return Reading(
        score,
        f"Nearest neighbours share their label in {share(agree)} of {len(labels)} cases; chance would give {share(chance)}.",
        "The labels seem unrelated to the data; the file of labels may have another order. Conditional samples will look "
        "the same for all classes.",
        "Check that labels and values are in the same order; ignore this if the classes differ only in fine details.",
    )


@check("flip-changes", WARNING, above(0.75, "data that look the same when mirrored give 0.5; photographs 0.5 to 0.6, digits 0.95"))
def flip_changes(plan: Plan) -> Reading | None:
    """Share of the images that are nearer to another image than to any mirrored one, if flips are on."""
    if plan.dataset is None or not plan.dataset.is_image or not plan.recipe.training.flip or len(plan.x0) < ENOUGH:
        return None
    straight, mirrored = features(plan.x0), features(plan.x0.flip(-1))
    distances = torch.cdist(straight, mirrored).fill_diagonal_(torch.inf)
    told = float((nearest(straight)[0] < distances.amin(1)).double().mean())
    return Reading(
        told,
        f"{share(told)} of the images are nearer to another image than to any mirrored one (0.5 if mirroring changes nothing).",
        "Left and right differ in these data, and flipping trains on mirror images: half of the samples will be mirrored.",
        "--set training.flip=false",
    )


@check(
    "clip-cuts-data",
    WARNING,
    above(0.001, "images lie within [-1, 1] exactly; a third of the entries of standardised data do not"),
    of_levels=True,
)
def clip_cuts_data(plan: Plan) -> Reading | None:
    """Share of the entries of x0 outside [-1, 1], if sampling clips to that range."""
    if plan.dataset is None or not plan.recipe.sampling.clip:
        return None
    outside = float((plan.x0.abs() > 1 + 1e-6).double().mean())
    return Reading(
        outside,
        f"{share(outside)} of the entries of x0 lie outside [-1, 1].",
        "sampling.clip clamps every prediction to [-1, 1], the range of images, but these data exceed it: samples pile up at the ends.",
        "--set sampling.clip=false",
    )
