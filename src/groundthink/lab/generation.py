"""`groundthink generate`: print a continuation as it is drawn."""

from __future__ import annotations

from groundthink.errors import UserError
from groundthink.lab.config import Generate


def run(config: Generate) -> None:
    """Print the prompt and its continuation; save the session if asked."""
    from groundthink.device import pick_device
    from groundthink.models.generate import Session, generate, stream_text
    from groundthink.models.pretrained import load

    model, tokenizer = load(
        require(config.run, "runs/NAME"), device=pick_device(config.device), which=config.checkpoint
    )
    if tokenizer is None:
        raise UserError(f"{config.run} has no tokenizer.json; put the tokenizer of the model there")
    session = Session.load(config.load_state, model) if config.load_state else Session()
    prompt = tokenizer.encode(config.prompt)
    session.extend(prompt if prompt or session.pending else [tokenizer.eos])
    stop = tokenizer.eos if config.stop_at_end else None
    tokens = generate(model, session, config.tokens, config.sampling, stop)
    print(config.prompt, end="", flush=True)
    for piece in stream_text(tokenizer, (token for token in tokens if token != stop)):
        print(piece, end="", flush=True)
    print()
    if config.save_state:
        session.save(config.save_state)


def require(run: str, example: str) -> str:
    """The run a command needs, or a UserError that shows how to give it."""
    if not run:
        raise UserError(f"which one? give its folder, for example {example}")
    return run
