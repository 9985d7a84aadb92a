/* Signals queued for a process while blocked: the order of real-time ones, their values, senders and codes. */
#include "workload.h"

static void queue(int signal, int code, int value)
{
	siginfo_t info = { 0 };

	info.si_signo = signal;
	info.si_code = code;
	info.si_pid = 4321;
	info.si_uid = 1234;
	info.si_value.sival_int = value;
	MUST(syscall(SYS_rt_sigqueueinfo, getpid(), signal, &info));
}

static void expect(int signal, int code, int value)
{
	struct timespec none = { 0, 0 };
	siginfo_t info = { 0 };
	sigset_t one;
	int got;

	sigemptyset(&one);
	sigaddset(&one, signal);
	got = sigtimedwait(&one, &info, &none);
	CHECK(got == signal, "signal %d is not pending (%s)", signal, strerror(errno));
	CHECK(info.si_code == code, "signal %d: code %d, should be %d", signal, info.si_code, code);
	if (code == SI_QUEUE || code == SI_MESGQ)
		CHECK(info.si_pid == 4321 && info.si_uid == 1234 && info.si_value.sival_int == value, "signal %d: pid %d uid %d value %d, should be %d", signal,
		      info.si_pid, info.si_uid, info.si_value.sival_int, value);
	if (code == SI_USER)
		CHECK(info.si_pid == getpid() && info.si_uid == 0, "signal %d: sent by %d of user %d", signal, info.si_pid, info.si_uid);
}

int main(int argc, char **argv)
{
	sigset_t all, left;

	wl_init(argc, argv);
	sigfillset(&all);
	MUST(sigprocmask(SIG_SETMASK, &all, NULL));
	for (int i = 0; i < 20; i++) {
		queue(SIGRTMIN + 2, SI_QUEUE, 100 + i);
		queue(SIGRTMIN, i % 2 ? SI_QUEUE : SI_MESGQ, 200 + i);
	}
	MUST(kill(getpid(), SIGTERM));
	/* An ordinary signal is queued once only: the second is lost. */
	queue(SIGUSR1, SI_QUEUE, 1);
	queue(SIGUSR1, SI_QUEUE, 2);
	queue(SIGRTMAX, SI_QUEUE, -7);

	wl_ready();
	if (wl_lose)
		expect(SIGRTMIN + 2, SI_QUEUE, 100);
	for (int i = 0; i < 20; i++) {
		expect(SIGRTMIN, i % 2 ? SI_QUEUE : SI_MESGQ, 200 + i);
		expect(SIGRTMIN + 2, SI_QUEUE, 100 + i);
	}
	expect(SIGTERM, SI_USER, 0);
	expect(SIGUSR1, SI_QUEUE, 1);
	expect(SIGRTMAX, SI_QUEUE, -7);
	MUST(sigpending(&left));
	CHECK(sigisemptyset(&left), "more signals are pending than were sent");
	wl_ok();
}
