/* Many processes and threads on one node at once, some of them killed at any moment: every call is counted once, no clock
 * call is lost from the log's order, and a GPU that nobody named stays as it was.
 *
 * Usage: many FOLDER SECONDS SEED. */
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

enum { WORKERS = 6, THREADS = 2, VICTIMS = 2 };

/* What the surviving workers did, told by themselves. */
typedef struct {
    uint64_t sets, resets, reads;
} tally;

static tally *tallies; /* shared: one for each worker */
static int worker;

static void *work(void *argument) {
    unsigned int seed = (unsigned)(uintptr_t)argument;
    double until = state_now() + atof(getenv("MANY_SECONDS"));
    nvml_device handles[] = {handle_of(0), handle_of(1)};
    tally mine = {0, 0, 0};
    while (state_now() < until) {
        nvml_device handle = handles[rand_r(&seed) % 2];
        unsigned int clock = 210 + rand_r(&seed) % 1200, number;
        unsigned long long large;
        switch (rand_r(&seed) % 6) {
            case 0: CHECK(nvmlDeviceResetGpuLockedClocks(handle) == SUCCESS); mine.resets++; break;
            case 1:
            case 2: CHECK(nvmlDeviceSetGpuLockedClocks(handle, clock, clock) == SUCCESS); mine.sets++; break;
            case 3: CHECK(nvmlDeviceGetTotalEnergyConsumption(handle, &large) == SUCCESS); mine.reads++; break;
            case 4: CHECK(nvmlDeviceGetClockInfo(handle, CLOCK_SM, &number) == SUCCESS); mine.reads++; break;
            default: CHECK(nvmlDeviceGetPowerUsage(handle, &number) == SUCCESS); mine.reads++;
        }
    }
    __atomic_add_fetch(&tallies[worker].sets, mine.sets, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&tallies[worker].resets, mine.resets, __ATOMIC_SEQ_CST);
    __atomic_add_fetch(&tallies[worker].reads, mine.reads, __ATOMIC_SEQ_CST);
    return NULL;
}

static pid_t start(int index, unsigned int seed) {
    pid_t child = fork();
    if (child != 0) return child;
    worker = index;
    CHECK(nvmlInit_v2() == SUCCESS);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)(seed + (unsigned)i)) == 0);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    CHECK(nvmlShutdown() == SUCCESS);
    exit(0);
}

static void order_holds(psim_node *node, int gpu) {
    static psim_clock_call calls[PSIM_CALL_LOG];
    int count;
    CHECK(psim_clock_calls(node, gpu, 0, calls, PSIM_CALL_LOG, &count) == PSIM_OK);
    CHECK(count > 0);
    for (int i = 1; i < count; i++) CHECK(calls[i].sequence == calls[i - 1].sequence + 1);
    /* Whoever called last holds. */
    psim_gpu_status status = status_of(node, gpu);
    CHECK(status.locked == calls[count - 1].locked);
    CHECK(status.locked_highest_megahertz == calls[count - 1].highest_megahertz);
}

int main(int count, char **arguments) {
    if (count != 4) return 2;
    char path[4096];
    snprintf(path, sizeof path, "%s/many-state", arguments[1]);
    setenv("MANY_SECONDS", arguments[2], 1);
    unsigned int seed = (unsigned)atoi(arguments[3]);
    psim_node *node = make_node(path, (psim_config){.counter_refresh_seconds = 0.001});
    tallies = mmap(NULL, sizeof(tally) * (WORKERS + VICTIMS), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(tallies != MAP_FAILED);
    pid_t workers[WORKERS], victims[VICTIMS];
    for (int i = 0; i < WORKERS; i++) workers[i] = start(i, seed + 100u * (unsigned)i);
    int killed = 0, status;
    for (double until = state_now() + atof(arguments[2]); state_now() < until; killed += VICTIMS) {
        for (int i = 0; i < VICTIMS; i++) victims[i] = start(WORKERS + i, seed + 7u * (unsigned)(killed + i));
        usleep((useconds_t)(rand_r(&seed) % 30000));
        for (int i = 0; i < VICTIMS; i++) {
            kill(victims[i], SIGKILL);
            CHECK(waitpid(victims[i], &status, 0) == victims[i]);
        }
    }
    for (int i = 0; i < WORKERS; i++)
        CHECK(waitpid(workers[i], &status, 0) == workers[i] && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    /* Whoever was killed in the middle of a call may have been its last: one call more, so that the log's last is whole. */
    CHECK(nvmlInit_v2() == SUCCESS);
    for (unsigned int gpu = 0; gpu < 2; gpu++)
        CHECK(nvmlDeviceSetGpuLockedClocks(handle_of(gpu), 900 + gpu, 900 + gpu) == SUCCESS);
    CHECK(nvmlShutdown() == SUCCESS);
    tally all = {0, 0, 0};
    for (int i = 0; i < WORKERS; i++) {
        all.sets += tallies[i].sets;
        all.resets += tallies[i].resets;
        all.reads += tallies[i].reads;
    }
    psim_call_counts seen = {0, 0, 0, 0, 0};
    for (int gpu = 0; gpu < 2; gpu++) {
        psim_call_counts calls = status_of(node, gpu).calls;
        seen.set_locked_clocks += calls.set_locked_clocks;
        seen.reset_locked_clocks += calls.reset_locked_clocks;
        seen.reads += calls.reads + calls.energy_reads;
        order_holds(node, gpu);
    }
    /* The killed ones told nothing of what they did: the device counted at least what the others say. */
    CHECK(all.sets > 0 && all.resets > 0 && all.reads > 0);
    CHECK(seen.set_locked_clocks >= all.sets && seen.reset_locked_clocks >= all.resets && seen.reads >= all.reads);
    psim_gpu_status bystander = status_of(node, 2);
    CHECK(!bystander.locked && bystander.calls.set_locked_clocks == 0 && bystander.calls.reset_locked_clocks == 0);
    printf("ok %d processes killed, %llu clock calls\n", killed,
           (unsigned long long)(seen.set_locked_clocks + seen.reset_locked_clocks));
    psim_close(node);
    unlink(path);
    return 0;
}
