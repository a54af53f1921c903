"""Where a method is: on a model itself, on a part of it (a wrapper's, an average's), or on a whole that it is a part of."""

PLACE = "_sparsernn_study"


def studies(model):
    """Name → study, of the model ("") and of its parts that a method is on."""
    return {name: vars(module)[PLACE] for name, module in model.named_modules() if PLACE in vars(module)}


def refuse_elsewhere(model, to):
    """Raise ValueError where a method is on a part or on a whole of the model, with what to do. to: "compact", "attach"."""
    found = studies(model)
    if name := next((name for name in found if name), None):
        raise ValueError(
            f"a method is on model.{name}, not on the model: give {to} model.{name}, or study.detach() first"
        )
    carrying = (name for name, module in model.named_modules() if hasattr(module._modules.get("carried"), "method"))
    if not found and (name := next(carrying, None)) is not None:
        raise ValueError(
            f"{name or 'it'} belongs to a larger model with a method on it: give {to} that one, or study.detach() first"
        )
