"""Estimates how many replicas a trainer needs: items per second, cost, latency of training steps.

Pass the measured tokens per second (`make bench`), or a backbone, a GPU's matrix peak and the share of it
that `benchmarks.gpu` measured there. Latencies are simulated (benchmarks/queue_simulation.py).
"""

import argparse

from transformers import AutoConfig

from app.backbone.packing import pack
from benchmarks.gpu import FULL_SIZE_MODELS, count_flops
from benchmarks.queue_simulation import (
    ReplicaSpeed,
    Route,
    route_by_prompt,
    route_to_fewest_tokens,
    simulate,
    training_step_requests,
)

ROUTES: dict[str, Route] = {
    "responses spread": route_to_fewest_tokens,
    "responses to a prompt together": route_by_prompt,
}
SIMULATED_STEPS = 3


def main() -> None:
    """Print the rate of one replica, and the latency of a training step with several replicas."""
    args = _parse_arguments()
    length = args.prompt + args.tokens
    rate = args.tokens_s or args.share * args.peak_tflops * 1e12 / flops_per_token(args.model, length)
    print(f"one replica: {rate:,.0f} tokens/s, {rate / length:,.1f} items/s of {length} tokens, none shared")
    if args.price:
        cost = 1e6 * length / rate / 3600 * args.price
        print(f"a million of them: {cost:,.2f} at {args.price:g} an hour")
    print(f"{args.groups} prompts x {args.responses} responses every {args.every:g} s, scored after:")
    speed = ReplicaSpeed(args.pass_s, 1 / rate, args.budget, args.memory)
    for count in args.replicas:
        latencies = [
            f"{_step_latency(args, speed, count, route):.2f} s ({name})" for name, route in ROUTES.items()
        ]
        print(f"  {count} replicas: {', '.join(latencies)}")


def flops_per_token(model: str, context: int) -> float:
    """The average FLOPs per token of an item of `context` tokens."""
    config = AutoConfig.for_model(**FULL_SIZE_MODELS[model])
    return count_flops(config, pack([tuple(range(context))])) / context


def _step_latency(args: argparse.Namespace, speed: ReplicaSpeed, count: int, route: Route) -> float:
    """Seconds from the start of the last simulated step until its last reward."""
    requests = training_step_requests(
        args.every, SIMULATED_STEPS, args.groups, args.responses, args.prompt, args.tokens
    )
    latencies = simulate(requests, speed, count, route)
    return max(latencies[-args.groups * args.responses :])


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    models = FULL_SIZE_MODELS
    parser.add_argument("--tokens-s", type=float, help="measured tokens per second of one replica")
    parser.add_argument("--model", choices=models, default=next(iter(models)), help="or: a backbone")
    parser.add_argument("--peak-tflops", type=float, help="matrix peak of the device")
    parser.add_argument("--share", type=float, help="share of the peak that was measured")
    parser.add_argument("--price", type=float, help="price of a device per hour, in any currency")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--every", type=float, default=60.0, help="seconds between training steps")
    parser.add_argument("--groups", type=int, default=64, help="prompts per step")
    parser.add_argument("--responses", type=int, default=8, help="responses per prompt")
    parser.add_argument("--prompt", type=int, default=192, help="tokens per prompt")
    parser.add_argument("--tokens", type=int, default=256, help="tokens per response")
    parser.add_argument("--budget", type=int, default=1024, help="tokens per forward pass")
    parser.add_argument(
        "--memory", type=int, default=100_000, help="prompt tokens in a replica's prefix cache"
    )
    parser.add_argument("--pass-s", type=float, default=0.01, help="constant seconds per forward pass")
    args = parser.parse_args()
    if not args.tokens_s and not (args.peak_tflops and args.share):
        parser.error("pass --tokens-s, or --peak-tflops and --share")
    return args


if __name__ == "__main__":
    main()
