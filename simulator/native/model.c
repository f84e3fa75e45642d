/* The device: which clock is in force, how fast kernels run at it, and the energy that this costs.
 *
 * Time is continuous and advanced lazily, by whoever looks: from event to event (a clock request comes into force, a
 * kernel ends, the energy counter refreshes), so that no thread has to tick. */
#define _GNU_SOURCE
#include "state.h"

#include <math.h>

#define PROBE_SECONDS 0.05 /* how often dead clients are looked for; each probe is a system call */

enum { REASON_IDLE = 0x1, REASON_POWER_CAP = 0x4, REASON_SOFTWARE_THERMAL = 0x20, REASON_HARDWARE_THERMAL = 0x40 };

row_span model_rows(const state_file *state, int stage, int instruction) {
    row_span span = {0, 0};
    for (int i = 0; i < state->config.rows; i++) {
        const psim_row *row = &state->rows[i];
        if (row->stage != stage || row->instruction != instruction) continue;
        if (span.count == 0) span.first = i;
        span.count++;
    }
    return span;
}

/* Time and energy at a clock: measured rows as they are, straight lines between them; beyond the measured clocks the time
 * goes with 1/clock and the power stays. */
void model_cost(const state_file *state, row_span span, int clock, double *seconds, double *joules) {
    const psim_row *rows = &state->rows[span.first];
    const psim_row *highest = &rows[0], *lowest = &rows[span.count - 1];
    const psim_row *end = NULL;
    if (span.count == 1 || highest->clock_megahertz == 0) {
        *seconds = highest->seconds;
        *joules = highest->joules;
        return;
    }
    if (clock >= highest->clock_megahertz) end = highest;
    if (clock <= lowest->clock_megahertz) end = lowest;
    if (end != NULL) {
        double factor = clock >= highest->clock_megahertz ? 1.0 : (double)end->clock_megahertz / clock;
        *seconds = end->seconds * factor;
        *joules = end->joules * factor;
        return;
    }
    int above = 0;
    while (rows[above + 1].clock_megahertz > clock) above++;
    const psim_row *fast = &rows[above], *slow = &rows[above + 1];
    double share = (double)(fast->clock_megahertz - clock) / (fast->clock_megahertz - slow->clock_megahertz);
    *seconds = fast->seconds + share * (slow->seconds - fast->seconds);
    *joules = fast->joules + share * (slow->joules - fast->joules);
}

static int snapped(const psim_config *config, int clock) {
    int steps = (config->highest_clock_megahertz - clock + config->clock_step_megahertz - 1) / config->clock_step_megahertz;
    int found = config->highest_clock_megahertz - steps * config->clock_step_megahertz;
    return found < config->lowest_clock_megahertz ? config->lowest_clock_megahertz : found;
}

static int allowed_clock(const state_file *state, const gpu_state *gpu) {
    int clock = state->config.highest_clock_megahertz;
    if (gpu->in_force.locked && gpu->in_force.highest < clock) clock = gpu->in_force.highest;
    if (clock < state->config.lowest_clock_megahertz) clock = state->config.lowest_clock_megahertz;
    return snapped(&state->config, clock);
}

static double watts_at(const state_file *state, const client_slot *client, int clock) {
    if (client->fixed) return client->watts;
    double seconds, joules;
    model_cost(state, client->rows, clock, &seconds, &joules);
    return joules / seconds * client->power_factor;
}

static double uniform(gpu_state *device) { /* xorshift64* (Vigna 2016) */
    device->noise ^= device->noise >> 12;
    device->noise ^= device->noise << 25;
    device->noise ^= device->noise >> 27;
    return (double)((device->noise * 0x2545f4914f6cdd1dull) >> 11) / 9007199254740992.0;
}

double model_noise(gpu_state *device, double deviation) {
    if (deviation <= 0) return 1;
    double sum = -6; /* twelve uniform numbers are normal enough, and bounded */
    for (int i = 0; i < 12; i++) sum += uniform(device);
    double factor = 1 + deviation * sum;
    return factor < 0.1 ? 0.1 : factor;
}

/* How far from warm the chip is: 1 when its first client comes, then falling to 0. */
static double coldness(const state_file *state, const gpu_state *device) {
    double constant = state->config.warm_up_seconds;
    if (constant <= 0) return 0;
    double seconds = (device->integrated_seconds - device->warm_since_seconds) * state->config.time_scale;
    return exp(-(seconds > 0 ? seconds : 0) / constant);
}

int model_running(psim_node *node, int gpu) {
    int running = 0;
    for (int i = 0; i < PSIM_MAX_CLIENTS; i++)
        running += node->state->gpus[gpu].clients[i].used && node->state->gpus[gpu].clients[i].running;
    return running;
}

int model_clients(psim_node *node, int gpu) {
    int clients = 0;
    for (int i = 0; i < PSIM_MAX_CLIENTS; i++) clients += node->state->gpus[gpu].clients[i].used;
    return clients;
}

/* The power of the whole device at a clock: kernels that run at once take turns, so the mean of theirs. */
static double power_at(psim_node *node, int gpu, int clock) {
    const state_file *state = node->state;
    const gpu_state *device = &state->gpus[gpu];
    int running = 0, clients = 0;
    double watts = 0;
    for (int i = 0; i < PSIM_MAX_CLIENTS; i++) {
        const client_slot *client = &device->clients[i];
        clients += client->used;
        if (!client->used || !client->running) continue;
        running++;
        watts += watts_at(state, client, clock);
    }
    if (clients == 0) return state->config.idle_watts;
    double warmth = 1 - state->config.cold_share * coldness(state, device);
    if (running == 0) return state->config.blocking_watts * warmth;
    watts /= running;
    /* A hot device does the same work in more time: the work's energy stays, the waiting power comes on top. */
    double above = watts - state->config.blocking_watts;
    if (above > 0 && device->faults.slowdown > 1) watts = state->config.blocking_watts + above / device->faults.slowdown;
    return watts * warmth;
}

static int clock_now(psim_node *node, int gpu) {
    const gpu_state *device = &node->state->gpus[gpu];
    int clock = allowed_clock(node->state, device);
    double cap = device->faults.power_cap_watts;
    if (cap > 0)
        while (clock - node->state->config.clock_step_megahertz >= node->state->config.lowest_clock_megahertz &&
               power_at(node, gpu, clock) > cap)
            clock -= node->state->config.clock_step_megahertz;
    return clock;
}

double model_power_watts(psim_node *node, int gpu) { return power_at(node, gpu, clock_now(node, gpu)); }

int model_held_clock(psim_node *node, int gpu) {
    if (model_clients(node, gpu) > 0) return clock_now(node, gpu);
    const gpu_state *device = &node->state->gpus[gpu];
    int lowest = node->state->config.lowest_clock_megahertz;
    return device->in_force.locked && device->in_force.lowest > lowest ? allowed_clock(node->state, device) : lowest;
}

uint64_t model_event_reasons(psim_node *node, int gpu) {
    const gpu_state *device = &node->state->gpus[gpu];
    uint64_t reasons = 0;
    if (model_clients(node, gpu) == 0) return REASON_IDLE;
    if (clock_now(node, gpu) < allowed_clock(node->state, device)) reasons |= REASON_POWER_CAP;
    if (device->faults.slowdown > 1) reasons |= REASON_SOFTWARE_THERMAL | REASON_HARDWARE_THERMAL;
    return reasons;
}

double model_temperature(psim_node *node, int gpu) {
    double heat = node->state->gpus[gpu].faults.slowdown > 1 ? 25.0 : 0.0;
    double cold = model_clients(node, gpu) ? 25.0 * coldness(node->state, &node->state->gpus[gpu]) : 0.0;
    return 30.0 + 0.1 * model_power_watts(node, gpu) + heat - cold;
}

/* Simulated seconds that a kernel still needs at a clock while `running` kernels share the device. */
static double remaining_seconds(const state_file *state, const gpu_state *device, const client_slot *client, int clock,
                                int running) {
    double factor = device->faults.slowdown * running;
    if (client->fixed) return client->remaining * running;
    double seconds, joules;
    model_cost(state, client->rows, clock, &seconds, &joules);
    return client->remaining * seconds * client->time_factor * factor;
}

static double next_event(psim_node *node, int gpu, double until_seconds) {
    const state_file *state = node->state;
    const gpu_state *device = &state->gpus[gpu];
    double next = until_seconds;
    if (device->pending && device->effective_seconds < next) next = device->effective_seconds;
    int running = model_running(node, gpu);
    if (running) {
        int clock = clock_now(node, gpu);
        for (int i = 0; i < PSIM_MAX_CLIENTS; i++) {
            const client_slot *client = &device->clients[i];
            if (!client->used || !client->running) continue;
            double end = device->integrated_seconds +
                         remaining_seconds(state, device, client, clock, running) / state->config.time_scale;
            if (end < next) next = end;
        }
    }
    return next > device->integrated_seconds ? next : device->integrated_seconds;
}

/* Go to a time before which nothing happens. */
static void step_to(psim_node *node, int gpu, double time_seconds) {
    const state_file *state = node->state;
    gpu_state *device = &node->state->gpus[gpu];
    double simulated = (time_seconds - device->integrated_seconds) * state->config.time_scale;
    int running = model_running(node, gpu);
    int clock = clock_now(node, gpu);
    double watts = power_at(node, gpu, clock);
    if (simulated > 0) {
        device->energy_joules += watts * simulated;
        uint64_t reasons = model_event_reasons(node, gpu);
        if (reasons & REASON_POWER_CAP) device->capped_seconds += simulated;
        if (reasons & REASON_SOFTWARE_THERMAL) device->hot_seconds += simulated;
        if (running) device->busy_seconds += simulated;
    }
    device->integrated_seconds = time_seconds;
    for (int i = 0; i < PSIM_MAX_CLIENTS && running; i++) {
        client_slot *client = &device->clients[i];
        if (!client->used || !client->running) continue;
        double left = remaining_seconds(state, device, client, clock, running);
        if (simulated > 0) {
            client->busy_seconds += simulated;
            client->joules += watts * simulated / running;
            client->clock_seconds += client->fixed ? 0 : clock * simulated;
        }
        /* A rest too short to move the clock on, whose steps grow with the machine's uptime, would never end. */
        if (left - simulated <= 1e-9 || time_seconds + (left - simulated) / state->config.time_scale <= time_seconds) {
            client->running = 0;
            client->end_seconds = time_seconds;
            device->kernels++;
        } else if (simulated > 0) {
            client->remaining *= 1 - simulated / left;
        }
    }
    if (device->pending && device->effective_seconds <= time_seconds) {
        clock_range before = device->in_force;
        device->in_force = device->requested;
        device->pending = 0;
        device->clock_changes += before.locked != device->in_force.locked || before.lowest != device->in_force.lowest ||
                                 before.highest != device->in_force.highest;
    }
}

static void advance_quietly(psim_node *node, int gpu, double until_seconds) {
    gpu_state *device = &node->state->gpus[gpu];
    while (device->integrated_seconds < until_seconds ||
           (device->pending && device->effective_seconds <= device->integrated_seconds))
        step_to(node, gpu, next_event(node, gpu, until_seconds));
}

static void forget_dead_clients(psim_node *node, int gpu) {
    gpu_state *device = &node->state->gpus[gpu];
    for (int i = 0; i < PSIM_MAX_CLIENTS; i++)
        if (device->clients[i].used && !slot_is_alive(node, gpu, i)) device->clients[i] = (client_slot){0};
}

void model_advance(psim_node *node, int gpu, double now_seconds) {
    gpu_state *device = &node->state->gpus[gpu];
    double period = node->state->config.counter_refresh_seconds / node->state->config.time_scale;
    double ticks = floor((now_seconds - device->counted_seconds) / period);
    if (ticks >= 1) {
        double tick = device->counted_seconds + ticks * period;
        advance_quietly(node, gpu, tick);
        device->counted_seconds = tick;
        device->published_joules = device->energy_joules;
    }
    advance_quietly(node, gpu, now_seconds);
    if (now_seconds - device->probed_seconds > PROBE_SECONDS) {
        device->probed_seconds = now_seconds;
        forget_dead_clients(node, gpu);
    }
}

void model_request(psim_node *node, int gpu, clock_range range) {
    gpu_state *device = &node->state->gpus[gpu];
    double now = state_now();
    model_advance(node, gpu, now);
    device->requested = range;
    device->pending = 1;
    device->effective_seconds = now + node->state->config.clock_change_delay_seconds / node->state->config.time_scale;
    advance_quietly(node, gpu, now);
}

double model_end_seconds(psim_node *node, int gpu, int slot) {
    const state_file *state = node->state;
    const gpu_state *device = &state->gpus[gpu];
    double left = remaining_seconds(state, device, &device->clients[slot], clock_now(node, gpu), model_running(node, gpu));
    double end = device->integrated_seconds + left / state->config.time_scale;
    return device->pending && device->effective_seconds < end ? device->effective_seconds : end;
}
