"""Change given images with the network of a run: variations of one, the way from one to another, parts made anew.

  python scripts/edit.py variations --run runs/digits --image 12 --strength 0.5
  python scripts/edit.py interpolate --run runs/digits --image 12 --image 15
  python scripts/edit.py inpaint --run runs/digits --image photo.png --resize true --mask right

An image is a picture file, or the number of one of the images that the run was trained on.
"""

from functools import partial
from pathlib import Path
from typing import Literal, Optional

import numpy as np
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt
from PIL import Image

from ms_diffusion import editing, samplers, sampling_command, visualize
from ms_diffusion.checkpoint import Run
from ms_diffusion.config import Config, Parser, RuntimeConfig
from ms_diffusion.data import make_dataset, read_picture, to_float, to_uint8
from ms_diffusion.errors import UserError, check_writable, exit_on_user_error
from ms_diffusion.sampling import sample

PARTS = ("center", "left", "right", "top", "bottom")


def main() -> None:
    """Parse, load, edit, write."""
    parser = Parser(description=__doc__)
    commands = parser.add_subcommands(dest="mode", metavar="MODE")
    for name, (add_options, _) in MODES.items():
        command = Parser(description=add_options.__doc__)
        add_options(command)
        commands.add_subcommand(name, command, help=add_options.__doc__)
    parsed = parser.parse_args()
    options, machine = parsed[parsed.mode], parser.instantiate(parsed)[parsed.mode].runtime
    check_writable(options.out, visualize.picture_suffixes())
    if options.npz:
        check_writable(options.npz, [".npz"])
    MODES[parsed.mode][1](options, machine)


# ---- Variations ----


def add_variations(parser: Parser) -> None:
    """Other images like a given one: it is noised up to a level, and sampled down again (SDEdit)."""
    add_images(parser, "the image")
    parser.add_argument(
        "--strength", type=float, default=0.5,
        help="share of the noise levels that the image goes up and down: near 0 it stays, at 1 nothing of it is left",
    )
    sampling_command.add_sampler(parser)
    add_draws(parser)
    add_results(parser, num=8)


def vary(options: Namespace, machine: RuntimeConfig) -> None:
    """Variations of one image."""
    run, model, labels = sampling_command.open_run(options, machine, min(options.num, options.batch_size))
    (image,) = read_images(options, run.config, 1)
    reached = editing.until(run.diffusion.schedule, options.strength)
    sampler, steps = sampling_command.choose_sampler(run, options, reached)
    denoise = sampling_command.make_denoiser(run, model, options, sampler)
    loop = partial(
        editing.variations, sampler, denoise, run.diffusion.schedule, steps=steps, images=image,
        strength=options.strength,
    )
    samples, _ = sample(
        loop, steps, image.shape[1:], options.num, options.seed, batch_size=options.batch_size, progress=True,
        before=sampling_command.before_batch(model, labels),
    )
    write(options, run, f"{options.num} variations by way of t = {len(reached) - 1}", samples, [image])


# ---- Interpolation ----


def add_interpolate(parser: Parser) -> None:
    """What lies between two images: both are turned into noise, mixed there, and sampled (DDIM and its inversion)."""
    add_images(parser, "give two: the images at both ends")
    parser.add_argument(
        "--strength", type=float, default=1.0,
        help="share of the noise levels up to which the images are turned into noise; near 0 they are only blended",
    )
    parser.add_argument("--steps", type=PositiveInt, default=20, help="into noise, and from it; at most T")
    parser.add_argument(
        "--iterations", type=PositiveInt, default=10, help="network calls in a step into noise: more, exacter ends"
    )
    sampling_command.add_rederive_eps(parser)
    add_results(parser, num=9)


def interpolate(options: Namespace, machine: RuntimeConfig) -> None:
    """A row of images between two, all of them one batch."""
    if options.num < 2:
        raise UserError(f"--num is {options.num}: the images at both ends are among them, so give 2 or more")
    run, model, labels = sampling_command.open_run(options, machine, options.num)
    first, second = read_images(options, run.config, 2)
    sampler = samplers.find("ddim")
    samplers.check(sampler, editing.encodable(run.diffusion.schedule, options.strength), options.steps)
    denoise = sampling_command.make_denoiser(run, model, options, sampler)

    def loop(_):
        return editing.interpolation(
            denoise, run.diffusion.schedule, options.steps, strength=options.strength, iterations=options.iterations,
            first=np.repeat(first, options.num, 0), second=np.repeat(second, options.num, 0),
            shares=np.linspace(0, 1, options.num),
        )

    samples, _ = sample(
        loop, options.steps, first.shape[1:], options.num, 0, batch_size=options.num, progress=True,
        before=sampling_command.before_batch(model, labels),
    )
    off = max(np.abs(samples[0] - first[0]).max(), np.abs(samples[-1] - second[0]).max())
    what = f"{options.num} images from one to the other, whose ends are {off:.1e} off"
    write(options, run, what, samples, [first], [second])


# ---- Inpainting ----


def add_inpaint(parser: Parser) -> None:
    """A part of an image is made anew so that it fits the rest, which stays bit for bit (RePaint)."""
    add_images(parser, "the image")
    parser.add_argument(
        "--mask", type=str, default="center",
        help="the part to make anew: " + ", ".join(PARTS) + ", or a picture of the image's size, white there",
    )
    parser.add_argument(
        "--sampler", type=Literal["ancestral", "ddim"], default="ancestral", help="the paper's, or DDIM's single steps"
    )
    parser.add_argument("--steps", type=Optional[PositiveInt], default=None, help="at most T; null means 50, or T")
    parser.add_argument("--eta", type=Optional[float], default=None, help="ddim: 0 to 1, DDPM's noise; null means 0")
    parser.add_argument("--jump", type=PositiveInt, default=5, help="steps that go back up into noise at once")
    parser.add_argument("--resamplings", type=PositiveInt, default=10, help="how often such a stretch is walked down")
    sampling_command.add_rederive_eps(parser)
    add_draws(parser)
    add_results(parser, num=8)


def inpaint(options: Namespace, machine: RuntimeConfig) -> None:
    """One image, with a part made anew in several ways."""
    run, model, labels = sampling_command.open_run(options, machine, min(options.num, options.batch_size))
    (image,) = read_images(options, run.config, 1)
    known = read_mask(options, run.config.data.image_size)
    schedule = run.diffusion.schedule
    options.steps = options.steps or min(50, len(schedule))
    sampler, steps = sampling_command.choose_sampler(run, options, schedule)
    places = editing.walk(steps, options.jump, options.resamplings)
    denoise = sampling_command.make_denoiser(run, model, options, sampler)
    loop = partial(
        editing.inpainting, sampler, denoise, schedule, steps=steps, images=image, known=known, jump=options.jump,
        resamplings=options.resamplings,
    )
    moves = sum(then < now for now, then in zip(places, places[1:]))
    samples, _ = sample(
        loop, moves, image.shape[1:], options.num, options.seed, batch_size=options.batch_size, progress=True,
        before=sampling_command.before_batch(model, labels),
    )
    masked = np.where(known, image, np.float32(0))
    what = f"{options.num} times {np.count_nonzero(~known)} of {known.size} pixels anew, in {moves} network calls each"
    write(options, run, what, samples, [image, masked], known=known)


# ---- What they share ----


def add_images(parser: Parser, which: str) -> None:
    """The run, and the given images."""
    sampling_command.add_run(parser)
    parser.add_argument(
        "--image", type=str, action="append", required=True,
        help=f"{which}: a picture, or the number of one of the images that the run was trained on",
    )
    parser.add_argument(
        "--resize", type=bool, default=False, help="fit a picture of another size as training does; else it is refused"
    )


def add_draws(parser: Parser) -> None:
    """Randomness and batches."""
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="the same seed gives the same images")
    parser.add_argument("--batch_size", type=PositiveInt, default=64, help="images at a time; changes no image")


def add_results(parser: Parser, num: int) -> None:
    """How many results, with what labels, and where they go."""
    parser.add_argument("--num", type=PositiveInt, default=num, help="images to make")
    parser.add_argument("--out", type=str, default="edited.png", help="picture of what was given, beside the results")
    parser.add_argument(
        "--npz", type=Optional[str], default=None,
        help="arrays: given and samples, float32 (N, C, H, W), and of inpaint known, bool (H, W)",
    )
    sampling_command.add_labels(parser)
    parser.add_argument("--runtime", type=RuntimeConfig, default=RuntimeConfig())


def read_images(options: Namespace, config: Config, count: int) -> list[np.ndarray]:
    """The given images, float32 (1, C, H, W) each; `UserError` unless there are `count`, and for what is none."""
    if len(options.image) != count:
        raise UserError(f"--image is given {len(options.image)} times: give it {('once', 'twice')[count - 1]}")
    return [read_image(word, config, options.resize) for word in options.image]


def read_image(word: str, config: Config, resize: bool) -> np.ndarray:
    """One image, float32 (1, C, H, W): a picture file or the number of an image of the run's data."""
    if not word.isdecimal():
        return to_float(read_fitting(word, config.model.channels, config.data.image_size, resize)[None])
    dataset = make_dataset(config.data, config.model.channels)
    if int(word) >= len(dataset):
        raise UserError(f"--image is {word}: {dataset.name} has images 0 to {len(dataset) - 1}")
    return dataset.batch([int(word)])


def read_fitting(path: str, channels: int, size: int, resize: bool) -> np.ndarray:
    """A picture file, uint8 (C, H, W), which must have this size unless it may be resized."""
    picture = read_picture(path, channels, size)
    with Image.open(path) as opened:
        width, height = opened.size
    if not resize and (width, height) != (size, size):
        raise UserError(f"{path} is {width}x{height}: give a picture of {size}x{size}, or --resize true")
    return picture


def read_mask(options: Namespace, size: int) -> np.ndarray:
    """Which pixels stay, bool (H, W)."""
    anew = np.zeros((size, size), bool)
    half, quarter = size // 2, size // 4
    if options.mask in PARTS:
        parts = {
            "center": np.s_[quarter : size - quarter, quarter : size - quarter], "left": np.s_[:, :half],
            "right": np.s_[:, size - half :], "top": np.s_[:half], "bottom": np.s_[size - half :],
        }
        anew[parts[options.mask]] = True
    else:
        anew = read_fitting(options.mask, 1, size, options.resize)[0] >= 128
    if not anew.any():
        raise UserError(f"--mask is {options.mask}: nothing in it is white, so there is nothing to make anew")
    return ~anew


def write(
    options: Namespace, run: Run, what: str, samples: np.ndarray, before: list, after: list = (), **arrays: np.ndarray
) -> None:
    """The picture: given images, results, given images; the arrays; and `what` was done, in a line."""
    row = len(samples) if after else min(len(samples), 8)
    columns = [
        visualize.make_grid(to_uint8(np.concatenate(before)), 1), visualize.make_grid(to_uint8(samples), row),
        *(visualize.make_grid(to_uint8(image), 1) for image in after),
    ]
    visualize.save_picture(visualize.side_by_side(columns), options.out)
    print(f"{what}, after {run.step} training steps ({run.weights}): {Path(options.out)}")
    if options.npz:
        np.savez(options.npz, samples=samples, given=np.concatenate([*before[:1], *after]), **arrays)
        print(f"arrays: {options.npz}")


MODES = {
    "variations": (add_variations, vary), "interpolate": (add_interpolate, interpolate),
    "inpaint": (add_inpaint, inpaint),
}

if __name__ == "__main__":
    exit_on_user_error(main)
