/* The interface of psim.h over the model: status, faults, and kernels that wait as long as the device takes. */
#define _GNU_SOURCE
#include "psim.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "state.h"

static int known(const psim_node *node, int gpu) { return gpu >= 0 && gpu < node->state->config.gpus; }

int psim_read_config(psim_node *node, psim_config *config) {
    *config = node->state->config;
    return PSIM_OK;
}

int psim_read_init_fault(psim_node *node) { return node->state->init_unknown; }

int psim_status(psim_node *node, int gpu, psim_gpu_status *status) {
    if (!known(node, gpu)) return PSIM_ERROR_ARGUMENT;
    gpu_state *device = &node->state->gpus[gpu];
    int result = state_lock(device);
    if (result != PSIM_OK) return result;
    model_advance(node, gpu, state_now());
    memset(status, 0, sizeof *status);
    memcpy(status->uuid, node->state->config.uuids[gpu], sizeof status->uuid);
    status->index = gpu;
    status->locked = device->requested.locked;
    status->locked_lowest_megahertz = device->requested.lowest;
    status->locked_highest_megahertz = device->requested.highest;
    status->in_force_locked = device->in_force.locked;
    status->in_force_lowest_megahertz = device->in_force.lowest;
    status->in_force_highest_megahertz = device->in_force.highest;
    status->held_clock_megahertz = model_held_clock(node, gpu);
    status->clients = model_clients(node, gpu);
    status->running = model_running(node, gpu);
    status->event_reasons = model_event_reasons(node, gpu);
    status->clock_changes = device->clock_changes;
    status->kernels = device->kernels;
    status->energy_joules = device->energy_joules;
    status->published_joules = device->published_joules;
    status->power_watts = model_power_watts(node, gpu);
    status->temperature_celsius = model_temperature(node, gpu);
    status->busy_seconds = device->busy_seconds;
    status->capped_seconds = device->capped_seconds;
    status->hot_seconds = device->hot_seconds;
    status->faults = device->faults;
    status->calls = device->calls;
    state_unlock(device);
    return PSIM_OK;
}

int psim_clock_calls(psim_node *node, int gpu, uint64_t from, psim_clock_call *calls, int space, int *count) {
    if (!known(node, gpu) || space < 0) return PSIM_ERROR_ARGUMENT;
    gpu_state *device = &node->state->gpus[gpu];
    int result = state_lock(device);
    if (result != PSIM_OK) return result;
    uint64_t oldest = device->logged > PSIM_CALL_LOG ? device->logged - PSIM_CALL_LOG : 0;
    *count = 0;
    for (uint64_t next = from > oldest ? from : oldest; next < device->logged && *count < space; next++)
        calls[(*count)++] = device->log[next % PSIM_CALL_LOG];
    state_unlock(device);
    return PSIM_OK;
}

int psim_inject(psim_node *node, int gpu, const psim_faults *faults) {
    if (!known(node, gpu) || !(faults->slowdown >= 0.01 && faults->slowdown <= 1000) ||
        !(faults->power_cap_watts >= 0 && faults->power_cap_watts < 1e6) ||
        !(faults->call_latency_seconds >= 0 && faults->call_latency_seconds <= 60))
        return PSIM_ERROR_ARGUMENT;
    gpu_state *device = &node->state->gpus[gpu];
    int result = state_lock(device);
    if (result != PSIM_OK) return result;
    model_advance(node, gpu, state_now());
    device->faults = *faults;
    state_wake(device);
    state_unlock(device);
    return PSIM_OK;
}

int psim_inject_init_unknown(psim_node *node, int on) {
    node->state->init_unknown = on != 0;
    return PSIM_OK;
}

static int foreign(psim_node *node, int gpu, clock_range range) {
    if (!known(node, gpu)) return PSIM_ERROR_ARGUMENT;
    gpu_state *device = &node->state->gpus[gpu];
    int result = state_lock(device);
    if (result != PSIM_OK) return result;
    model_request(node, gpu, range);
    state_wake(device);
    state_unlock(device);
    return PSIM_OK;
}

int psim_foreign_lock(psim_node *node, int gpu, int lowest, int highest) {
    if (lowest < 1 || highest < lowest) return PSIM_ERROR_ARGUMENT;
    return foreign(node, gpu, (clock_range){1, lowest, highest});
}

int psim_foreign_reset(psim_node *node, int gpu) { return foreign(node, gpu, (clock_range){0, 0, 0}); }

int psim_client_open(psim_node *node, int gpu, psim_client **client) {
    if (!known(node, gpu)) return PSIM_ERROR_ARGUMENT;
    gpu_state *device = &node->state->gpus[gpu];
    if (device->faults.flags & PSIM_FAULT_LOST) return PSIM_ERROR_LOST;
    psim_client *opened = calloc(1, sizeof *opened);
    if (opened == NULL) return PSIM_ERROR_SYSTEM;
    int result = PSIM_ERROR_FULL;
    for (int slot = 0; slot < PSIM_MAX_CLIENTS && result == PSIM_ERROR_FULL; slot++) {
        result = slot_claim(node, gpu, slot, &opened->descriptor);
        opened->slot = slot;
    }
    if (result == PSIM_OK && (result = state_lock(device)) != PSIM_OK) close(opened->descriptor);
    if (result != PSIM_OK) {
        free(opened);
        return result;
    }
    model_advance(node, gpu, state_now());
    if (model_clients(node, gpu) == 0) device->warm_since_seconds = device->integrated_seconds;
    device->clients[opened->slot] = (client_slot){.used = 1, .pid = (int32_t)getpid()};
    state_unlock(device);
    opened->node = node;
    opened->gpu = gpu;
    opened->pid = (int)getpid();
    *client = opened;
    return PSIM_OK;
}

void psim_client_close(psim_client *client) {
    if (client == NULL) return;
    if (client->pid == (int)getpid()) {
        gpu_state *device = &client->node->state->gpus[client->gpu];
        if (state_lock(device) == PSIM_OK) {
            model_advance(client->node, client->gpu, state_now());
            device->clients[client->slot] = (client_slot){0};
            state_wake(device);
            state_unlock(device);
        }
    }
    close(client->descriptor);
    free(client);
}

static int run_kernel(psim_client *client, client_slot work, psim_kernel *kernel) {
    /* The default timer slack of 50 microseconds would make each kernel so much longer. */
    static __thread int precise;
    if (!precise) {
        prctl(PR_SET_TIMERSLACK, 1000ul);
        precise = 1;
    }
    psim_node *node = client->node;
    gpu_state *device = &node->state->gpus[client->gpu];
    if (client->pid != (int)getpid()) return PSIM_ERROR_CLOSED;
    int result = state_lock(device);
    if (result != PSIM_OK) return result;
    client_slot *slot = &device->clients[client->slot];
    double now = state_now();
    model_advance(node, client->gpu, now);
    if (!slot->used || slot->running) {
        state_unlock(device);
        return slot->used ? PSIM_ERROR_ARGUMENT : PSIM_ERROR_CLOSED;
    }
    work.used = 1;
    work.pid = slot->pid;
    work.running = 1;
    work.begin_seconds = now;
    work.time_factor = work.fixed ? 1 : model_noise(device, node->state->config.time_noise);
    work.power_factor = work.fixed ? 1 : model_noise(device, node->state->config.power_noise);
    *slot = work;
    /* Another kernel on the device slows this one, and this one it. */
    if (model_running(node, client->gpu) > 1) state_wake(device);
    while (slot->used && slot->running) {
        if (device->faults.flags & PSIM_FAULT_LOST) {
            slot->running = 0;
            state_unlock(device);
            return PSIM_ERROR_LOST;
        }
        uint32_t epoch = __atomic_load_n(&device->epoch, __ATOMIC_SEQ_CST);
        double until = model_end_seconds(node, client->gpu, client->slot);
        state_unlock(device);
        state_wait(device, epoch, until);
        if ((result = state_lock(device)) != PSIM_OK) return result;
        model_advance(node, client->gpu, state_now());
    }
    if (model_running(node, client->gpu) > 0) state_wake(device);
    *kernel = (psim_kernel){slot->begin_seconds, slot->end_seconds, slot->busy_seconds, slot->joules,
                            slot->busy_seconds > 0 ? slot->clock_seconds / slot->busy_seconds : 0};
    result = slot->used ? PSIM_OK : PSIM_ERROR_CLOSED;
    state_unlock(device);
    return result;
}

int psim_run(psim_client *client, int stage, int instruction, psim_kernel *kernel) {
    row_span rows = model_rows(client->node->state, stage, instruction);
    if (rows.count == 0) return PSIM_ERROR_NO_ENTRY;
    return run_kernel(client, (client_slot){.rows = rows, .remaining = 1.0}, kernel);
}

int psim_run_fixed(psim_client *client, double seconds, double watts, psim_kernel *kernel) {
    if (!(seconds >= 0 && seconds < 1e6) || !(watts >= 0 && watts < 1e6)) return PSIM_ERROR_ARGUMENT;
    return run_kernel(client, (client_slot){.fixed = 1, .remaining = seconds, .watts = watts}, kernel);
}

int psim_expected(psim_node *node, int stage, int instruction, int clock, double *seconds, double *joules) {
    row_span rows = model_rows(node->state, stage, instruction);
    if (rows.count == 0) return PSIM_ERROR_NO_ENTRY;
    if (clock < 1) return PSIM_ERROR_ARGUMENT;
    model_cost(node->state, rows, clock, seconds, joules);
    return PSIM_OK;
}

const char *psim_error_string(int result) {
    switch (result) {
        case PSIM_OK: return "no error";
        case PSIM_ERROR_ARGUMENT: return "a value is out of range, or the GPU is unknown";
        case PSIM_ERROR_SYSTEM: return strerror(errno);
        case PSIM_ERROR_FORMAT: return "not a state file of this version";
        case PSIM_ERROR_FULL: return "too many processes have the GPU open";
        case PSIM_ERROR_LOST: return "the GPU fell off the bus";
        case PSIM_ERROR_NO_ENTRY: return "the profile does not hold this stage and instruction";
        case PSIM_ERROR_CLOSED: return "the client was closed, or belongs to the parent of a fork";
        default: return "unknown error";
    }
}
