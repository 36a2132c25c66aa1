"""Population-based training: which trials continue with another trial's weights.

Ray Tune's PopulationBasedTraining copies weights through Ray Tune's checkpoints, which trials of several workers do not
have.
"""

import math
import random
from collections.abc import Callable
from typing import Any

from landmark.evaluation.ranking import score
from landmark.search.schedulers.base import Scheduler
from landmark.search.state.state import Decision, TrialState

TakeOver = Callable[[TrialState, TrialState, random.Random], object]
"""Plans that the first trial continues with the second trial's weights and perturbed settings."""


class PopulationBased(Scheduler):
    """Population-based training (Jaderberg et al. 2017).

    Every interval_epochs, the worst trials copy the weights and settings of the best, and perturb the settings. If not all
    trials can run at once, those with the fewest epochs run first.
    """

    def __init__(self, *arguments: Any, exploit: TakeOver, seed: int) -> None:
        super().__init__(*arguments)
        self.exploit = exploit
        self.seed = seed

    def on_result(self, trial: TrialState) -> None:
        """Compare with all trials that have reached the same epoch."""
        self.decide(trial, self._decision(trial))

    def _decision(self, trial: TrialState) -> Decision:
        if trial.planned is not None:  # planned by a process that died before it recorded the decision
            return "restart"
        epoch = trial.epochs_run
        if epoch % self.config.interval_epochs:
            return "continue"
        peers = [t for t in self.record.trials.values() if epoch in t.rows and t.error is None]
        count = min(math.ceil(len(peers) * self.config.quantile), len(peers) // 2)
        peers.sort(key=lambda peer: (self._score(peer, epoch), -peer.plan.number))
        # Trials at their last epoch are no sources: with their weights, no epoch would be left to train.
        best = [peer for peer in peers[len(peers) - count :] if peer.epochs_run < peer.plan.recipe.epochs]
        best = [peer for peer in best if peer.state != "ended" and self._score(peer, epoch) > -math.inf]
        if best and trial in peers[:count]:
            generator = random.Random(f"{self.seed}-{trial.plan.number}-{epoch}")
            self.exploit(trial, generator.choice(best), generator)
            return "restart"
        behind = any(t.state == "waiting" and t.epochs_run < epoch for t in self.record.trials.values())
        return "restart" if behind else "continue"

    def _score(self, trial: TrialState, epoch: int) -> float:
        """Return a trial's score at an epoch: higher is better, -inf for a metric that is not finite."""
        return score(trial.rows[epoch][self.metric], self.mode)
