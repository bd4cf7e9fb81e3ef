"""The parameters of a model in groups that are trained alike, whatever its bank and its routers are."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from mhr.layers.bank import AdapterBank
from mhr.routing import ParameterGroup


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    router_lr: float,
    weight_decay: float,
    decaying: Collection[str],
    router_weight_decay: float = 0.0,
) -> list[ParameterGroup]:
    """All that asks for a gradient in `model`, which may carry a bank, in its order within each group; none is empty.

    adapters    at `lr` with `weight_decay`: skills, modules that are trained whole, or, without a bank, the model
    undecayed   at `lr`: what is not among `decaying` (names of parameters: not biases and norms), and vectors of scalings, whose
                neutral value is 1, which decay would pull off
    routing     at `router_lr` with `router_weight_decay`: routing logits
    others      as a router says: see `Router.parameter_groups`
    """
    bank = getattr(model, "mhr", None)
    routing = ParameterGroup("routing", [], router_lr, router_weight_decay)
    groups = {
        "adapters": ParameterGroup("adapters", [], lr, weight_decay),
        "undecayed": ParameterGroup("undecayed", [], lr),
        routing.name: routing,
    }
    group_of: dict[int, str] = {}
    if isinstance(bank, AdapterBank):
        for part in (*bank.groups.values(), *(() if bank.contexts is None else [bank.contexts])):
            for group in part.parameter_groups(routing):
                known = groups.setdefault(group.name, group.of([]))
                if (known.lr, known.weight_decay) != (group.lr, group.weight_decay):
                    raise ValueError(
                        f"routers train {group.name!r} in different ways: {known.of([])} and {group.of([])}"
                    )
                group_of |= {id(parameter): group.name for parameter in group.parameters}
        if bank.config.adapter == "ia3":
            group_of |= {id(parameter): "undecayed" for parameter in bank.adapter_parameters()}
    members: dict[str, list[nn.Parameter]] = {name: [] for name in groups}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            usual = "adapters" if name in decaying else "undecayed"
            members[group_of.get(id(parameter), usual)].append(parameter)
    return [groups[name].of(parameters) for name, parameters in members.items() if parameters]
