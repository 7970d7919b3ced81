# Sourced by the batch scripts of this folder. `run_echo_pl ARGUMENTS` starts echo-pl in every task of the job.
#
# The run is named after the job, so that the same job continues it when it is started again: SIGUSR1, which --signal sends
# some minutes before the time is up, ends the run after a whole step with a checkpoint and exit status 138; the job is then
# put back into the queue. After a failed node SLURM requeues it. scancel (SIGTERM, exit status 143) ends it.

# The environment that `make install` made, unless another one is named.
export PATH="${ECHO_PL_VENV:-$SLURM_SUBMIT_DIR/.venv}/bin:$PATH"
# Where rank 0 listens: the first node of the job, unless its name cannot be resolved by the others.
export MASTER_ADDR="${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"

run_echo_pl() {
    cd "$SLURM_SUBMIT_DIR" || return 1
    # --wait: when a task has ended, the others get this many seconds; a rank that waits for a dead one must not wait for days.
    # --cpus-per-task: since SLURM 22.05 srun does not take it from the job.
    srun --wait=300 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} echo-pl \
        "trainer.devices=${SLURM_NTASKS_PER_NODE:-1}" "trainer.num_nodes=$SLURM_JOB_NUM_NODES" \
        "run_name=${RUN_NAME:-$SLURM_JOB_NAME-$SLURM_JOB_ID}" resume=if_any "$@"
    local status=$?
    if [ "$status" -eq 138 ]; then
        # A run whose time is too short for a step would otherwise go round for ever.
        if [ "${SLURM_RESTART_COUNT:-0}" -ge "${MAX_REQUEUES:-50}" ]; then
            echo "job $SLURM_JOB_ID has been requeued $SLURM_RESTART_COUNT times, and MAX_REQUEUES is ${MAX_REQUEUES:-50}: it stays" \
                "stopped; submit it again with RUN_NAME=${RUN_NAME:-$SLURM_JOB_NAME-$SLURM_JOB_ID} to go on" >&2
            return "$status"
        fi
        echo "the time is nearly up: job $SLURM_JOB_ID goes back into the queue"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    return "$status"
}
