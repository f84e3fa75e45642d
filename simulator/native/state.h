/* The state file: one shared mapping that every process of the node works on, and the device's model over it.
 *
 * A GPU's fields are guarded by its robust mutex: a process killed while it holds the mutex leaves a state that is at
 * most one step of integration old, and the next one goes on from there. Nothing here knows NVML. */
#ifndef STATE_H
#define STATE_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "psim.h"

#define STATE_MAGIC 0x314d495355535250ull /* "PRSUSIM1" */
#define STATE_VERSION 3

/* Rows of one stage and instruction in the table; count 0 is none. */
typedef struct {
    int32_t first;
    int32_t count;
} row_span;

typedef struct {
    int32_t used;
    int32_t pid;          /* as the process saw itself: for people */
    int32_t running;
    int32_t fixed;        /* fixed work: remaining_seconds counts, watts draws */
    row_span rows;
    double remaining;     /* fraction of the instruction, or simulated seconds of fixed work */
    double watts;
    double begin_seconds; /* CLOCK_MONOTONIC */
    double end_seconds;   /* of the last kernel that ended */
    double joules;        /* of the kernel in progress, or the last one */
    double clock_seconds; /* integral of clock over simulated time, for the mean */
    double busy_seconds;  /* simulated seconds of the kernel */
    double time_factor;   /* this kernel's noise */
    double power_factor;
} client_slot;

typedef struct {
    int32_t locked;
    int32_t lowest;
    int32_t highest;
} clock_range;

typedef struct {
    pthread_mutex_t mutex;
    uint32_t epoch; /* a futex: changes whenever a waiting kernel must look again */
    clock_range requested;
    clock_range in_force;
    int32_t pending;
    double effective_seconds; /* CLOCK_MONOTONIC at which the request comes into force */
    double integrated_seconds;
    double counted_seconds; /* when the energy counter was refreshed last */
    double probed_seconds;  /* when dead clients were looked for last */
    double warm_since_seconds; /* when the device's first client came, after a time without any */
    uint64_t noise;         /* state of the random numbers */
    double energy_joules;
    double published_joules;
    double busy_seconds;
    double capped_seconds;
    double hot_seconds;
    uint64_t clock_changes;
    uint64_t kernels;
    psim_faults faults;
    psim_call_counts calls;
    uint64_t logged; /* clock calls so far; the last PSIM_CALL_LOG of them are in the ring */
    psim_clock_call log[PSIM_CALL_LOG];
    client_slot clients[PSIM_MAX_CLIENTS];
} gpu_state;

typedef struct {
    uint64_t magic;
    uint32_t version;
    uint32_t bytes;
    int32_t init_unknown;
    int32_t reserved;
    psim_config config;
    gpu_state gpus[PSIM_MAX_GPUS];
    psim_row rows[];
} state_file;

struct psim_node {
    state_file *state;
    int descriptor;
    char path[4096];
};

struct psim_client {
    psim_node *node;
    int gpu;
    int slot;
    int descriptor; /* holds the slot's file lock: the kernel frees it when the process dies */
    int pid;        /* of the process that opened it, against use after fork */
};

double state_now(void);
int state_lock(gpu_state *gpu);
void state_unlock(gpu_state *gpu);
void state_wake(gpu_state *gpu);
/* Wait until the epoch changes or the time (CLOCK_MONOTONIC, seconds) has come. */
void state_wait(gpu_state *gpu, uint32_t epoch, double until_seconds);

int slot_claim(psim_node *node, int gpu, int slot, int *descriptor);
int slot_is_alive(psim_node *node, int gpu, int slot);

/* The model. All are called with the GPU's mutex held. */
void model_advance(psim_node *node, int gpu, double now_seconds);
void model_request(psim_node *node, int gpu, clock_range range);
double model_end_seconds(psim_node *node, int gpu, int slot);
double model_power_watts(psim_node *node, int gpu);
double model_temperature(psim_node *node, int gpu);
int model_held_clock(psim_node *node, int gpu);
uint64_t model_event_reasons(psim_node *node, int gpu);
int model_clients(psim_node *node, int gpu);
/* The next factor of a normal distribution around 1. */
double model_noise(gpu_state *device, double deviation);
int model_running(psim_node *node, int gpu);
row_span model_rows(const state_file *state, int stage, int instruction);
void model_cost(const state_file *state, row_span rows, int clock, double *seconds, double *joules);

#endif
