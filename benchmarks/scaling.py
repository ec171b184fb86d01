"""How many replicas a trainer needs: pairs a second, what a million cost, and how long a step waits.

Give the tokens a second that were measured (`make bench`), or a backbone, a GPU's matrix peak and the share
of it that `benchmarks.gpu` measured there. Waiting times are simulated (benchmarks/queueing.py).
"""

import argparse

from transformers import AutoConfig

from app.backbone.packing import pack
from benchmarks.gpu import TRUE, flops
from benchmarks.queue_simulation import Route, Speed, by_prompt, shortest, simulate, steps

ROUTES: dict[str, Route] = {"responses spread": shortest, "responses to a prompt together": by_prompt}
STEPS = 3


def main() -> None:
    """Print what one replica does, and what several make of a trainer's steps."""
    given = _arguments()
    length = given.prompt + given.tokens
    rate = given.tokens_s or given.share * given.peak_tflops * 1e12 / per_token(given.model, length)
    print(f"one replica: {rate:,.0f} tokens/s, {rate / length:,.1f} pairs/s of {length} tokens, none shared")
    if given.price:
        print(
            f"a million of them: {1e6 * length / rate / 3600 * given.price:,.2f} at {given.price:g} an hour"
        )
    print(f"{given.groups} prompts x {given.responses} responses every {given.every:g} s, scored after:")
    speed = Speed(given.pass_s, 1 / rate, given.budget, given.memory)
    for count in given.replicas:
        told = [f"{_waited(given, speed, count, route):.2f} s ({name})" for name, route in ROUTES.items()]
        print(f"  {count} replicas: {', '.join(told)}")


def per_token(model: str, context: int) -> float:
    """FLOPs a token costs on average in a conversation of this length."""
    config = AutoConfig.for_model(**TRUE[model])
    return flops(config, pack([tuple(range(context))])) / context


def _waited(given: argparse.Namespace, speed: Speed, count: int, route: Route) -> float:
    """Seconds until the last reward of the last step, when steps come one after the other."""
    shape = (given.groups, given.responses, given.prompt, given.tokens)
    took = simulate(steps(given.every, STEPS, *shape), speed, count, route)
    return max(took[-given.groups * given.responses :])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--tokens-s", type=float, help="tokens a second of one replica, measured")
    parser.add_argument("--model", choices=TRUE, default=next(iter(TRUE)), help="else: this backbone")
    parser.add_argument("--peak-tflops", type=float, help="on a device with this matrix peak")
    parser.add_argument("--share", type=float, help="of which this share was measured to be used")
    parser.add_argument("--price", type=float, help="of a device and hour, in any currency")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--every", type=float, default=60.0, help="seconds from one step to the next")
    parser.add_argument("--groups", type=int, default=64, help="prompts in a step")
    parser.add_argument("--responses", type=int, default=8, help="responses to each")
    parser.add_argument("--prompt", type=int, default=192, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a response")
    parser.add_argument("--budget", type=int, default=1024, help="tokens of a pass")
    parser.add_argument("--memory", type=int, default=100_000, help="tokens of prompts a replica remembers")
    parser.add_argument("--pass-s", type=float, default=0.01, help="seconds a pass takes beside its tokens")
    given = parser.parse_args()
    if not given.tokens_s and not (given.peak_tflops and given.share):
        parser.error("give --tokens-s, or --peak-tflops and --share")
    return given


if __name__ == "__main__":
    main()
