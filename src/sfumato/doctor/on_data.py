"""What is wrong with the data, whoever trains on them."""

import hashlib
import math

import numpy as np
import torch

from sfumato.data.arrays import seem_last
from sfumato.data.options import DatasetsData, FolderData
from sfumato.doctor.check import ERROR, NOTE, WARNING, Reading, above, below, check, share
from sfumato.doctor.neighbours import features, nearest
from sfumato.doctor.plan import Plan

MOST_ROWS = 100_000  # hashed to find copies
ENOUGH = 100  # examples, below which a statistic of neighbours says nothing


@check("data-refused", ERROR, above(0, "what the loader refuses cannot be trained on"))
def data_refused(plan: Plan) -> Reading | None:
    """Whether the loader refuses the data."""
    if plan.source is not None or not plan.refusal:
        return None
    return Reading(
        1.0, plan.refusal, "The data cannot be read, so nothing else about them could be looked at.", "Mend what the sentence names."
    )


@check("captions-unused", NOTE, above(0, "who wrote captions may think that the model reads them"))
def captions_unused(plan: Plan) -> Reading | None:
    """How many captions come with the data, which no kind of model learns from yet."""
    if plan.dataset is None:
        return None
    count = len(plan.dataset.captions or ())
    change = "--set data.captions=false" if isinstance(plan.recipe.data, FolderData) else "--set data.caption=''"
    return Reading(
        float(count),
        f"{count} images have a caption.",
        "Captions are read and not used: the model learns from the images, and from classes where there are any.",
        f"{change} leaves them unread; for conditional samples, sort the images into class folders, or name a column of labels.",
    )


@check("broken-files", WARNING, above(0.005, "one file in 200 is an accident, more is a bad copy or an unfinished download"))
def broken_files(plan: Plan) -> Reading | None:
    """Share of the image files that cannot be read."""
    if plan.dataset is None:
        return None
    broken, whole = len(plan.dataset.skipped), len(plan.dataset)
    return Reading(
        broken / (broken + whole),
        f"{broken} of {broken + whole} files cannot be read: {'; '.join(plan.dataset.skipped[:3])}{' …' if broken > 3 else ''}.",
        "Training refuses such a folder." if plan.refusal else "They are left out; the rest may be a biased choice of what was meant.",
        "Repair, fetch again or remove these files.",
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
        f"All entries together have a standard deviation of {std:.2g} in x0 (0.5 is usual for images, 1 for other data).",
        "The data are constant, or nearly: there is nothing to learn, and samples will be one flat grey.",
        "Check the path and how the files were written: images in [0, 1] saved as bytes become 0 and 1; multiply by 255 before saving.",
    )


@check("constant-features", WARNING, above(0, "a feature that never changes is a column read by mistake; real ones vary"))
def constant_features(plan: Plan) -> Reading | None:
    """Share of the features of a table that never change."""
    if plan.dataset is None or plan.dataset.is_image or plan.x0.ndim != 2 or plan.x0.shape[1] < 2:
        return None
    dead = (plan.x0.std(0) < 1e-6).nonzero().flatten().tolist()
    return Reading(
        len(dead) / plan.x0.shape[1],
        f"{len(dead)} of {plan.x0.shape[1]} features are constant: number {', '.join(map(str, dead[:8]))}.",
        "The network spends capacity on predicting noise around a constant, and losses average over it.",
        "Drop these columns before saving the array.",
    )


@check(
    "near-precision",
    WARNING,
    above(0.01, "a hundredth of the deviation shows as stripes; float64 seconds since 1970 that spread over a minute have 1e-8"),
)
def near_precision(plan: Plan) -> Reading | None:
    """Distance of neighbouring numbers of the data's type where a channel (or column) lies, over the channel's standard deviation."""
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
        f"{name} varies by {deviation[worst]:.3g} where neighbouring {plan.dataset.values.dtype} are {step[worst]:.3g} apart.",
        "Few different values are left of these data: what distinguished them was lost when they were saved.",
        "Save them as float64, or less an offset that is taken off before they become " + f"{plan.dataset.values.dtype}.",
    )


@check("sliver-of-range", WARNING, below(0.3, "real image sets use all of 0 … 255; 12-bit data cut to bytes use a sixteenth"))
def sliver_of_range(plan: Plan) -> Reading | None:
    """Share of 0 … 255 between the 0.1% and the 99.9% point of the pixels."""
    if plan.dataset is None or not plan.dataset.is_bytes:
        return None
    low, high = np.quantile(plan.dataset.scaling.decode(plan.x0), [0.001, 0.999])
    return Reading(
        (high - low) / 255,
        f"The pixels lie between {low:.0f} and {high:.0f} of 0 … 255.",
        "Bytes are scaled as if they used the whole range, so the data are a small cloud far from unit scale: the network sees almost "
        "nothing but noise, and samples come out black, white or grey.",
        "Stretch the values to 0 … 255 before saving (images in [0, 1]: times 255), or save them as floats or 16 bits, which are "
        "standardised.",
    )


@check("outliers", WARNING, above(20, "a normal law reaches 6 in 10⁹ draws, a heavy tail 10; fill values such as -9999 reach hundreds"))
def outliers(plan: Plan) -> Reading | None:
    """Largest distance of a float entry from the mean, in standard deviations of all but the farthest thousandth."""
    if plan.dataset is None or plan.dataset.is_image:
        return None
    flat = plan.x0.flatten(2).transpose(0, 1).flatten(1) if plan.x0.ndim > 2 else plan.x0.T  # one row a feature
    middle = flat.median(1, keepdim=True).values
    kept = torch.quantile((flat - middle).abs(), 0.99, dim=1).clamp(min=1e-6)
    worst = ((flat - middle).abs().amax(1) / kept * 2.6).max()  # a normal law has its 99% point at 2.6
    return Reading(
        float(worst),
        f"An entry lies {float(worst):.0f} standard deviations of the others from their middle.",
        "One such value sets the scale of its feature: the rest is squeezed into a point, and the loss is that of the outlier.",
        "Look for fill values (-9999, 1e30) or broken rows, and remove or clip them.",
    )


@check(
    "unlike-scales",
    WARNING,
    below(0.03, "with data.scaling=all one scale serves all channels; below 1:30 a channel is noise to the loss"),
)
def unlike_scales(plan: Plan) -> Reading | None:
    """Standard deviation of the narrowest channel of float data over that of the widest."""
    if plan.dataset is None or plan.dataset.is_image or plan.x0.ndim < 3 or plan.x0.shape[1] < 2:
        return None
    spread = plan.x0.transpose(0, 1).flatten(1).std(1)
    ratio = float(spread.min() / spread.max())
    return Reading(
        ratio,
        f"Channel {int(spread.argmin())} has a standard deviation of {float(spread.min()):.2g} in x0, channel {int(spread.argmax())} "
        f"one of {float(spread.max()):.2g}.",
        "One number standardises all channels, so the narrow ones drown in the first noise and weigh nothing in the loss.",
        "--set data.scaling=channel",
    )


@check(
    "floats-for-images", WARNING, above(0, "floats of the shape [n, h, w, 1|3|4] are images with the channels last in every case we know")
)
def floats_for_images(plan: Plan) -> Reading | None:
    """Whether float data have the shape of images with their channels last."""
    if plan.dataset is None or plan.dataset.is_image or plan.x0.ndim != 4:
        return None
    shape = list(plan.dataset.values.shape)
    return Reading(
        float(plan.dataset.scaling.channels == "first" and seem_last(plan.dataset.values)),
        f"The values are {plan.dataset.values.dtype} {shape}.",
        f"Float tensors have their channels on axis 1: these images would be read as images of {shape[1]} channels and {shape[3]} pixels "
        "across.",
        "--set data.channels=last, or save bytes: np.save(path, (255 * values).round().astype(np.uint8)) for values in [0, 1].",
    )


@check("grey-as-rgb", WARNING, below(0.002, "JPEG leaves one pixel in thousands of a grey photo off grey by more than 4 levels"))
def grey_as_rgb(plan: Plan) -> Reading | None:
    """Share of the pixels of RGB images whose channels differ by more than 4 of 255 levels."""
    if plan.dataset is None or not plan.dataset.is_bytes or plan.x0.shape[1] < 3:
        return None
    rgb = plan.x0[:, :3]
    coloured = float(((rgb.amax(1) - rgb.amin(1)) > 4 / 127.5).float().mean())
    return Reading(
        coloured,
        f"{share(coloured)} of the pixels have any colour.",
        "Grey images are stored as RGB: the network learns three copies of one channel, and samples get a cast where they disagree.",
        "--set data.channels=1" if isinstance(plan.recipe.data, FolderData | DatasetsData) else "Save one channel: values[..., :1].",
    )


@check("alpha-channel", WARNING, above(0, "who wants transparency asks for four channels"))
def alpha_channel(plan: Plan) -> Reading | None:
    """Whether the images have a fourth channel that nobody asked for, or that is constant."""
    if plan.dataset is None or not plan.dataset.is_image:
        return None
    is_fourth = plan.x0.shape[1] == 4
    constant = is_fourth and float(plan.x0[:, 3].std()) < 1e-6
    return Reading(
        float(is_fourth and (constant or getattr(plan.recipe.data, "channels", None) != 4)),
        f"Images have {plan.x0.shape[1]} channels" + ("; the fourth is constant." if constant else "."),
        "The fourth channel is learnt like a colour, with pixels that nobody sees behind it, and viewers will show samples transparent.",
        "--set data.channels=3"
        if isinstance(plan.recipe.data, FolderData | DatasetsData)
        else "Lay the images on a colour and save three channels: values[..., :3].",
    )


@check("copies", WARNING, above(0.02, "the public sets have under 0.5% of exact copies"))
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
        "What is there often is learnt by heart first, and drawn as often.",
        "Remove the copies (fdupes -rdN FOLDER for files, np.unique(values, axis=0) for arrays).",
    )


@check(
    "near-copies",
    WARNING,
    above(0.02, "a tenth of the usual distance to a neighbour is the same picture saved twice; real neighbours stay above a quarter"),
)
def near_copies(plan: Plan) -> Reading | None:
    """Share of the examples, exact copies aside, that lie within a tenth of the median distance of nearest neighbours."""
    if plan.dataset is None or math.prod(plan.x0.shape[1:]) < 16 or len(plan.x0) < ENOUGH:
        return None
    distance, _ = nearest(features(plan.x0.unique(dim=0)))
    close = float((distance < 0.1 * distance.median()).float().mean())
    return Reading(
        close,
        f"{share(close)} of {len(distance)} examples have a neighbour ten times nearer than is usual.",
        "The same thing was stored several times with small changes (saved again, cut from one film): it will be learnt by heart.",
        "Keep one of each; to find them, compare small copies of the images.",
    )


@check(
    "tiny-set",
    WARNING,
    above(400, "the recipes that ship show each example 80 to 100 times; at 400, with more weights than numbers, it is known by heart"),
)
def tiny_set(plan: Plan) -> Reading | None:
    """How often each example is shown, where the network has more weights than the data have numbers."""
    if plan.source is None:
        return None
    training, examples = plan.recipe.training, len(plan.rows[0])
    numbers, often = examples * math.prod(plan.x0.shape[1:]), training.steps * training.batch / examples
    fewer = max(1, round(100 * examples / min(training.batch, examples)))
    return Reading(
        often if plan.parameters > numbers else 0.0,
        f"{examples} examples ({numbers:,} numbers) are each shown {often:.0f} times to {plan.parameters:,} weights.",
        "The network has room to store the data and time to do so: samples will be copies of the training examples.",
        f"--set training.steps={fewer} --set training.held_out=0.1"
        + (f" --set training.batch={examples}" if training.batch > examples else "")
        + ", a smaller network, or more data"
        + (" (--set training.flip=true doubles images that may be mirrored)." if plan.source.spec.is_image and not training.flip else "."),
    )


@check("batch-above-data", WARNING, above(1, "a batch larger than the data holds every example, some twice"))
def batch_above_data(plan: Plan) -> Reading | None:
    """The batch over the number of training examples."""
    if plan.source is None:
        return None
    batch, examples = plan.recipe.training.batch, len(plan.rows[0])
    return Reading(
        batch / examples,
        f"A batch of {batch} is drawn from {examples} examples.",
        "Every step sees the whole set: nothing is gained by the larger batch but time.",
        f"--set training.batch={max(1, examples // 4)}",
    )


@check(
    "class-imbalance",
    WARNING,
    above(20, "Oxford's flowers, thought of as unbalanced, have 6.5; at 20 a class is drawn well a twentieth as often"),
)
def class_imbalance(plan: Plan) -> Reading | None:
    """Examples of the commonest class over those of the rarest that has any."""
    if plan.dataset is None or plan.labels is None or len(plan.dataset.classes) < 2:
        return None
    counts = np.bincount(plan.labels, minlength=len(plan.dataset.classes))
    some = np.where(counts > 0, counts, counts.max())
    names = plan.dataset.classes
    return Reading(
        float(counts.max() / some.min()),
        f'"{names[int(counts.argmax())]}" has {counts.max()} examples, "{names[int(some.argmin())]}" has {some.min()}.',
        "The rare classes are seen so seldom that their samples will look like the common ones'.",
        "Repeat the rare ones or thin out the common ones, or merge classes.",
    )


@check("rare-classes", WARNING, below(8, "fewer than eight pictures say nothing about what varies in a class"))
def rare_classes(plan: Plan) -> Reading | None:
    """Training examples of the rarest class."""
    if plan.dataset is None or plan.labels is None or len(plan.dataset.classes) < 2:
        return None
    counts, names = np.bincount(plan.labels, minlength=len(plan.dataset.classes)), plan.dataset.classes
    rare = [f'"{names[i]}" ({counts[i]})' for i in np.flatnonzero(counts < 8)]
    return Reading(
        float(counts.min()),
        f"{len(rare)} of {len(counts)} classes have fewer than 8 training examples: {', '.join(rare[:6])}{' …' if len(rare) > 6 else ''}.",
        "They can only be learnt by heart, or not at all; a class without examples is still drawn by `sample`, as noise with a name.",
        "Remove or merge these classes, or number the labels 0, 1, … without gaps.",
    )


@check("one-class", WARNING, below(2, "a label that is always the same tells nothing"))
def one_class(plan: Plan) -> Reading | None:
    """How many classes occur among the labels."""
    if plan.dataset is None or plan.labels is None:
        return None
    present = len(np.unique(plan.labels))
    return Reading(
        float(present),
        f"All labels name {present} class.",
        "The label tells the network nothing, and guidance towards it does nothing.",
        "Save the data without labels, or check which column they were read from.",
    )


@check("empty-labels", WARNING, below(4, "shuffled labels stay within 3 standard errors of chance in 997 of 1000 sets"))
def empty_labels(plan: Plan) -> Reading | None:
    """Standard errors by which nearest neighbours share a label more often than chance."""
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
        "The labels seem to have nothing to do with the data: a file of labels in another order, perhaps. Conditional samples will be "
        "alike for all classes.",
        "Check that labels and values are in the same order; if the classes do differ in something finer, ignore this.",
    )


@check("flip-changes", WARNING, above(0.75, "mirrored data that look alike give 0.5; photographs 0.5 to 0.6, digits 0.95"))
def flip_changes(plan: Plan) -> Reading | None:
    """Share of the images whose nearest neighbour is another image rather than another one mirrored, where flips are on."""
    if plan.dataset is None or not plan.dataset.is_image or not plan.recipe.training.flip or len(plan.x0) < ENOUGH:
        return None
    straight, mirrored = features(plan.x0), features(plan.x0.flip(-1))
    distances = torch.cdist(straight, mirrored).fill_diagonal_(torch.inf)
    told = float((nearest(straight)[0] < distances.amin(1)).double().mean())
    return Reading(
        told,
        f"{share(told)} of the images lie nearer to another image than to any mirrored one (a half if mirroring changed nothing).",
        "Left and right differ in these data, and flipping teaches their mirror images: half of the samples will be mirrored.",
        "--set training.flip=false",
    )


@check(
    "clip-cuts-data",
    WARNING,
    above(0.001, "images lie within [-1, 1] to the last pixel; standardised data leave it with every third entry"),
    of_levels=True,
)
def clip_cuts_data(plan: Plan) -> Reading | None:
    """Share of the entries of x0 outside [-1, 1], where sampling clips to it."""
    if plan.dataset is None or not plan.recipe.sampling.clip:
        return None
    outside = float((plan.x0.abs() > 1 + 1e-6).double().mean())
    return Reading(
        outside,
        f"{share(outside)} of the entries of x0 lie outside [-1, 1].",
        "sampling.clip cuts every prediction to the range of images, which these data leave: samples pile up at the ends.",
        "--set sampling.clip=false",
    )
