"""The diffusion planner: a scene's condition in, trajectories in metres and radians out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .condition import Condition
from .configuration import (
    EGO_STATUS_SIZE,
    FLOW_NOISE_LEVEL,
    HIDDEN_STATE_SIZES,
    HISTORY_POSES,
    LOG_PROB_STD_FLOOR,
    POSE_SIZE,
    PlannerConfig,
    SamplerSettings,
    check_num_steps,
)
from .dit import DiT, Modulations
from .encoders import ActionEncoder, Mlp
from .normalization import denormalize_trajectory
from .samplers import DenoisingMethod, LogProbUnsupported, Transition, denoising_method
from .schedules import Float32Buffers, cosine_ddpm_tables, ddim_tables


@dataclass(frozen=True)
class Chain:
    """Denoising chains and where they end.

    Attributes:
        states: ``[B, N, K + 1, horizon, 3]`` float32, normalised; index 0 is the initial noise.
        trajectories: ``[B, N, horizon, 3]`` float32, metres and radians, ego frame.
    """

    states: Tensor
    trajectories: Tensor


class EtaParameter(nn.Module):
    """DDIM's stochasticity as published checkpoints store it: a frozen logit of +inf, which means eta = 1."""

    def __init__(self) -> None:
        super().__init__()
        self.eta_logit = nn.Parameter(torch.full((1,), torch.inf), requires_grad=False)


class _TimestepEmbedding(NamedTuple):
    """What the network needs of its timesteps: ``[1 or B, ..., E]`` and the adaLN modulations."""

    action_time: Tensor
    modulations: Modulations

    def at_step(self, step: int) -> _TimestepEmbedding:
        return _TimestepEmbedding(self.action_time[:, step : step + 1], self.modulations.at_step(step))


class DiffusionPlanner(Float32Buffers):
    """ReCogDrive's diffusion planner (arXiv 2506.08052).

    Names and order of its attributes (``model``, ``his_traj_encoder``, ``feature_encoder``, ``eta``, the ``ddpm_*`` and
    ``ddim_*`` buffers) are those of the published checkpoints, so that these load strictly.

    Schedules and all sampler arithmetic are float32 whatever the parameters' dtype and under autocast.
    """

    def __init__(self, config: PlannerConfig) -> None:
        super().__init__()
        self.config = config
        size = config.embedding_size
        if config.method != "flow":
            tables = cosine_ddpm_tables(config.num_train_timesteps)
            if config.method == "ddim":
                tables |= ddim_tables(tables["ddpm_alphas_cumprod"], config.num_inference_steps)
            for name, table in tables.items():
                self.register_buffer(name, table)
        self.model = DiT(config)
        self.his_traj_encoder = Mlp(HISTORY_POSES * POSE_SIZE, config.mlp_hidden_size, size)
        self.ego_status_encoder = Mlp(EGO_STATUS_SIZE, config.mlp_hidden_size, size)
        self.action_encoder = ActionEncoder(POSE_SIZE, size)
        self.feature_encoder = nn.Linear(config.hidden_state_size, size)
        self.fusion_projector = nn.Linear(3 * size, size)
        self.action_decoder = Mlp(config.output_size, config.mlp_hidden_size, POSE_SIZE)
        self.position_embedding = nn.Embedding(config.horizon, size)
        nn.init.normal_(self.position_embedding.weight, std=0.02)
        if config.method == "ddim":
            self.eta = EtaParameter()

    @property
    def method(self) -> DenoisingMethod:
        """The denoising method over this planner's schedule, where the schedule lives now."""
        tables = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        return denoising_method(self.config.method, tables)

    def condition(self, hidden_states: Tensor, past_poses: Tensor, ego_status: Tensor) -> Condition:
        """Everything of a scene that no denoising step changes, computed once.

        Args:
            hidden_states: ``[B, S, hidden_state_size]``, the VLM's, padding rows included as the planner was trained
                with them: it averages over all S rows and attends to all of them.
            past_poses: ``[B, 4, 3]`` (x, y, heading), oldest first, metres and radians, ego frame.
            ego_status: ``[B, 8]`` driving command one-hot (4), velocity (2, m/s), acceleration (2, m/s^2).

        Returns:
            The condition; it carries gradients where they are enabled.

        Raises:
            ValueError: for a shape that this planner does not take.
        """
        self._check_scene(hidden_states, past_poses, ego_status)
        projected = self.feature_encoder(self._as_parameters(hidden_states))
        history = self.his_traj_encoder(self._as_parameters(past_poses).flatten(1))
        size = self.config.embedding_size
        # The fusion projector reads [history, mean of the hidden states, action features]; only the last part changes
        # between steps and samples, so its first two thirds are applied here.
        fixed = torch.cat([history, projected.mean(dim=1).to(history.dtype)], dim=-1)
        return Condition(
            context=F.linear(fixed, self.fusion_projector.weight[:, : 2 * size], self.fusion_projector.bias),
            ego_status=self.ego_status_encoder(self._as_parameters(ego_status)),
            keys_and_values=self.model.keys_and_values(projected),
        )

    def predict(
        self, condition: Condition, noisy_actions: Tensor, timesteps: Tensor | int, *, recompute: bool = False
    ) -> Tensor:
        """The network: noise (ddim, ddpm) or velocity (flow) at given timesteps.

        Args:
            condition: of B scenes.
            noisy_actions: ``[B, N, horizon, 3]`` normalised, any N; more sample axes are allowed.
            timesteps: int or float, scalar or broadcasting to ``[B, N]``. The adaLN modulations are computed for the
                shape given: a scalar or ``[1, 1]`` shared by all samples costs less than the same repeated.
            recompute: see :meth:`.DiT.forward`.

        Returns:
            Same shape as ``noisy_actions``, in the dtype that the network computes in.

        Raises:
            ValueError: for a shape that does not fit the condition.
        """
        expected = (condition.batch_size, self.config.horizon, POSE_SIZE)
        if noisy_actions.ndim < 4 or (noisy_actions.shape[0], *noisy_actions.shape[-2:]) != expected:
            raise ValueError(
                f"noisy_actions must have shape [{expected[0]}, N, {expected[1]}, {expected[2]}] for a condition of "
                f"{expected[0]} scenes, found {list(noisy_actions.shape)}"
            )
        steps = torch.as_tensor(timesteps, device=noisy_actions.device)
        embedding = self._embed(condition, steps, noisy_actions.ndim - 2)
        return self._network(condition, noisy_actions, embedding, recompute)

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        num_samples: int = 1,
        *,
        deterministic: bool = False,
        settings: SamplerSettings | None = None,
        initial_noise: Tensor | None = None,
        step_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw trajectories, without gradients.

        Args:
            condition: of B scenes.
            num_samples: N trajectories per scene.
            deterministic: no noise in the steps (DDIM with eta = 0). The initial noise is drawn all the same. Flow
                matching is deterministic in this sense unless ``settings.flow_noise_level`` is above 0.
            settings: defaults to :meth:`SamplerSettings.inference`, the published evaluation.
            initial_noise: ``[B, N, horizon, 3]``, drawn if not given.
            step_noise: ``[K, B, N, horizon, 3]``, drawn step by step, after the initial noise, if not given.
            generator: draws the noise, on its own device: a CPU generator gives the same noise on every device.

        Returns:
            ``[B, N, horizon, 3]`` float32: x and y in metres, heading in radians, ego frame.

        Raises:
            ValueError: for noise of another shape or an impossible number of steps.
        """
        settings = settings or SamplerSettings.inference(self.config.method)
        return self._denoise(
            condition, num_samples, deterministic, settings, initial_noise, step_noise, generator
        ).trajectories

    @torch.no_grad()
    def sample_chain(
        self,
        condition: Condition,
        num_samples: int = 1,
        *,
        deterministic: bool = False,
        settings: SamplerSettings | None = None,
        initial_noise: Tensor | None = None,
        step_noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Chain:
        """As :meth:`sample`, keeping every state; ``settings`` default to :meth:`SamplerSettings.rollout`.

        Returns:
            The chains ``[B, N, K + 1, horizon, 3]`` and their trajectories ``[B, N, horizon, 3]``, without gradients.
        """
        settings = settings or SamplerSettings.rollout()
        return self._denoise(condition, num_samples, deterministic, settings, initial_noise, step_noise, generator)

    def log_prob(
        self,
        condition: Condition,
        states: Tensor,
        *,
        std_floor: float = LOG_PROB_STD_FLOOR,
        flow_noise_level: float = FLOW_NOISE_LEVEL,
    ) -> Tensor:
        """Log-density of every denoising step of given chains under this planner, with gradients.

        Args:
            condition: as in :meth:`transitions`, and so are the others.
            states: ``[B, N, K + 1, horizon, 3]``.
            std_floor: smallest standard deviation of a step.
            flow_noise_level: that of the chains.

        Returns:
            ``[B, N, K, horizon, 3]`` float32, per coordinate, in nats of the normalised space.

        Raises:
            LogProbUnsupported: for flow matching with ``flow_noise_level`` 0.
            ValueError: for chains of another shape.
        """
        transitions = self.transitions(condition, states, std_floor=std_floor, flow_noise_level=flow_noise_level)
        return transitions.log_prob(states[:, :, 1:].detach().float())

    def transitions(
        self,
        condition: Condition,
        states: Tensor,
        *,
        std_floor: float = LOG_PROB_STD_FLOOR,
        flow_noise_level: float = FLOW_NOISE_LEVEL,
        recompute: bool = False,
    ) -> Transition:
        """Distribution of every next state of given chains under this planner, with gradients.

        All steps of all samples go through the network in one call.

        Args:
            condition: of B scenes, made by this planner.
            states: ``[B, N, K + 1, horizon, 3]``, as in :attr:`Chain.states`; they are data and get no gradient.
            std_floor: smallest standard deviation of a step.
            flow_noise_level: that of the chains (:attr:`SamplerSettings.flow_noise_level`); only for flow matching.
            recompute: see :meth:`.DiT.forward`.

        Returns:
            Means ``[B, N, K, horizon, 3]`` and standard deviations ``[K, 1, 1]``, float32 under autocast too.

        Raises:
            LogProbUnsupported: for flow matching with ``flow_noise_level`` 0: such steps have no density.
            ValueError: for chains of another shape.
        """
        if self.config.method == "flow" and not flow_noise_level > 0:
            raise LogProbUnsupported(
                f"method 'flow' has no log-probabilities with flow_noise_level {flow_noise_level}: its denoising steps "
                "are deterministic (an ODE). Draw and score the chains with a level above 0."
            )
        pose = (self.config.horizon, POSE_SIZE)
        if (
            states.ndim != 5
            or states.shape[0] != condition.batch_size
            or states.shape[-2:] != pose
            or states.shape[2] < 2
        ):
            raise ValueError(
                f"states must have shape [{condition.batch_size}, N, K + 1, {pose[0]}, {pose[1]}], "
                f"found {list(states.shape)}"
            )
        before = states[:, :, :-1].detach().float()
        num_steps = before.shape[2]
        check_num_steps(num_steps, self.config.method, self.config.num_train_timesteps)
        steps = self.method.steps(num_steps, self._eta(flow_noise_level), states.device)
        prediction = self.predict(condition, before, steps.timesteps, recompute=recompute).float()
        mean, std = steps.step(slice(None), before, prediction)
        assert std is not None
        return Transition(mean, std.clamp(min=std_floor))

    def _denoise(
        self,
        condition: Condition,
        num_samples: int,
        deterministic: bool,
        settings: SamplerSettings,
        initial_noise: Tensor | None,
        step_noise: Tensor | None,
        generator: torch.Generator | None,
    ) -> Chain:
        num_steps = settings.num_inference_steps or self.config.num_inference_steps
        check_num_steps(num_steps, self.config.method, self.config.num_train_timesteps)
        shape = (condition.batch_size, num_samples, self.config.horizon, POSE_SIZE)
        device = condition.context.device
        steps = self.method.steps(num_steps, 0.0 if deterministic else self._eta(settings.flow_noise_level), device)
        noisy = _noise("initial_noise", initial_noise, shape, device, generator)
        if step_noise is not None and step_noise.shape != (num_steps, *shape):
            raise ValueError(f"step_noise must have shape {[num_steps, *shape]}, found {list(step_noise.shape)}")
        embedding = self._embed(condition, steps.timesteps, 2)
        states = [noisy]
        for k in range(num_steps):
            prediction = self._network(condition, noisy, embedding.at_step(k)).float()
            noisy, std = steps.step(k, noisy, prediction)
            last = k == num_steps - 1
            if std is not None and not deterministic and (settings.noise_at_last_step or not last):
                drawn = _noise("step_noise", None if step_noise is None else step_noise[k], shape, device, generator)
                if settings.noise_clamp is not None:
                    drawn = drawn.clamp(-settings.noise_clamp, settings.noise_clamp)
                noisy = noisy + std.clamp(min=settings.std_floor) * drawn
            states.append(noisy)
        # Autocast keeps the weights it has cast until its region ends. Older versions of torch hand those cast here,
        # without gradients, to later passes with gradients, which then miss the parameters.
        torch.clear_autocast_cache()
        end = noisy.clamp(-1, 1)
        if settings.clamp_chain_end:
            states[-1] = end
        return Chain(torch.stack(states, dim=2), denormalize_trajectory(end))

    def _eta(self, flow_noise_level: float) -> float:
        return flow_noise_level if self.config.method == "flow" else 1.0

    def _embed(self, condition: Condition, timesteps: Tensor, sample_axes: int) -> _TimestepEmbedding:
        # Leading axes of length 1 line the timesteps up with [B, ...]; what is shared stays shared.
        timesteps = timesteps.reshape((1,) * (sample_axes - timesteps.ndim) + tuple(timesteps.shape))
        return _TimestepEmbedding(
            self.action_encoder.encode_timesteps(timesteps), self.model.modulations(condition.ego_status, timesteps)
        )

    def _network(
        self, condition: Condition, noisy_actions: Tensor, embedding: _TimestepEmbedding, recompute: bool = False
    ) -> Tensor:
        actions = self.action_encoder(self._as_parameters(noisy_actions), embedding.action_time)
        actions = actions + self.position_embedding.weight.to(actions.dtype)
        size = self.config.embedding_size
        fused = F.linear(actions, self.fusion_projector.weight[:, 2 * size :])
        context = condition.context.reshape(condition.batch_size, *[1] * (noisy_actions.ndim - 2), size)
        decoded: Tensor = self.action_decoder(
            self.model(fused + context, embedding.modulations, condition.keys_and_values, recompute=recompute)
        )
        return decoded

    def _as_parameters(self, x: Tensor) -> Tensor:
        """In the parameters' dtype, except under autocast, which casts by itself and may want fewer bytes moved."""
        return x if torch.is_autocast_enabled(x.device.type) else x.to(self.feature_encoder.weight.dtype)

    def _check_scene(self, hidden_states: Tensor, past_poses: Tensor, ego_status: Tensor) -> None:
        width = self.config.hidden_state_size
        if hidden_states.ndim != 3 or hidden_states.shape[-1] != width or 0 in hidden_states.shape:
            known = {size: name for name, size in HIDDEN_STATE_SIZES.items()}
            made_by = known.get(hidden_states.shape[-1]) if hidden_states.ndim else None
            hint = f" These look like the {made_by} model's; take the planner of that model." if made_by else ""
            raise ValueError(
                f"hidden_states must have shape [B, S, {width}] for this planner, found {list(hidden_states.shape)}."
                + (hint if hidden_states.shape[-1:] != (width,) else "")
            )
        batch = len(hidden_states)
        for name, tensor, shape in (
            ("past_poses", past_poses, (batch, HISTORY_POSES, POSE_SIZE)),
            ("ego_status", ego_status, (batch, EGO_STATUS_SIZE)),
        ):
            if tensor.shape != shape:
                raise ValueError(
                    f"{name} must have shape {list(shape)} beside hidden_states of {batch} scenes, "
                    f"found {list(tensor.shape)}"
                )


def _noise(
    name: str, given: Tensor | None, shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """The given noise, checked, or a fresh draw: ``shape``, float32, on ``device``."""
    if given is None:
        where = device if generator is None else generator.device
        return torch.randn(shape, device=where, generator=generator).to(device)
    if given.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, found {list(given.shape)}")
    return given.to(device=device, dtype=torch.float32)
