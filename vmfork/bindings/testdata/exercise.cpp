// What exercise.c does, for sf.hpp. Also: exercise scope, the life of tickets.
#include <sf.hpp>

#include <cstdlib>
#include <functional>
#include <iostream>

static void attempt(const char *call, const std::function<void()> &f)
{
	try {
		f();
	} catch (const sf::Error &e) {
		std::cout << call << ": " << sf::name(e.kind()) << " [" << e.what() << "]\n";
	}
}

static void done(const char *call, const std::function<void()> &f)
{
	attempt(call, [&] {
		f();
		std::cout << call << ": ok\n";
	});
}

static void show(const sf::Ticket &t)
{
	std::cout << "ticket: [" << t.id() << "] [" << t.vm() << "] " << t.asked() << ' ' << t.granted() << '\n';
	for (const sf::Clone &c : t.clones())
		std::cout << "  " << c.id << ' ' << c.name << ' ' << c.ip << ' ' << c.vcpus << " [" << c.host << "]\n";
}

static void calls()
{
	sf::Identity me = sf::whoami();
	std::cout << "whoami: " << me.id << ' ' << me.member << ' ' << me.name << ' ' << me.ip << ' ' << me.vcpus << " ["
		  << me.host << "] [" << me.ticket << "]\n";
	sf::Ticket t = sf::request_ticket(3);
	show(t);
	sf::Ticket other = sf::request_ticket(4, true, 2, "web 1%");
	show(other);
	std::cout << "clone: " << t.clone() << '\n';
	std::cout << "clone: " << other.clone() << '\n';
	other.release();
	show(sf::get_ticket("t 1"));
	for (int i = 0; i < 2; i++) {
		sf::Checkpoint c = sf::checkpoint_parent();
		std::cout << "checkpoint: [" << c.checkpoint << "] " << c.id << " [" << c.ticket << "]\n";
	}
	done("create-clones", [&] { t.create_clones("c1"); });
	done("discard", [] { sf::discard("c1"); });
	done("exit", [] { sf::exit(3); });
	done("exit", [] { sf::exit_vm("web 1%", 4); });
	auto statuses = t.join();
	std::cout << "join: 1:" << statuses.at(1) << " 2:" << statuses.at(2) << '\n';
	done("join", [&] { t.join(2.5); });
	try {
		t.join(0);
	} catch (const sf::Lost &e) {
		std::cout << "join: lost [" << e.what() << "]\n";
		std::cout << "lost: 1:" << e.statuses().at(1) << " 2:" << e.statuses().at(2) << '\n';
	}
	done("kill", [&] { t.kill_clone(2); });
	done("kill", [&] { t.kill(); });
	sf::Fork fork = sf::await_fork();
	std::cout << "await-fork: " << fork.id << " [" << fork.ticket << "]\n";
	for (const sf::VM &vm : sf::list_vms())
		std::cout << "  " << vm.name << ' ' << vm.member << ' ' << vm.ip << ' ' << vm.parent << " [" << vm.ticket << "] "
			  << vm.id << '\n';
	for (const char *kind : {"invalid", "unknown", "refused", "state", "resources", "failed", "lost", "timeout", "killed",
				 "cloned", "version", "unavailable", "novel"})
		attempt("ticket", [&] { sf::get_ticket(kind); });
}

static void garbage(int times)
{
	for (; times > 0; times--) {
		try {
			sf::whoami();
			std::cout << "ok\n";
		} catch (const sf::Error &e) {
			std::cout << sf::name(e.kind()) << '\n';
		}
	}
}

static void fuzz(int times)
{
	auto quietly = [](const std::function<void()> &f) {
		try {
			f();
		} catch (const sf::Error &) {
		}
	};
	for (; times > 0; times--) {
		quietly([&] {
			sf::Ticket t = sf::request_ticket(2, true);
			quietly([&] { t.clone(); });
			quietly([&] { t.create_clones("c"); });
			quietly([&] { t.join(0.001); });
			quietly([&] { t.kill_clone(1); });
		});
		quietly([] { sf::get_ticket("t"); });
		quietly([] { sf::checkpoint_parent(); });
		quietly([] { sf::exit(1); });
		quietly([] { sf::await_fork(); });
		quietly([] { sf::list_vms(); });
	}
	std::cout << "fuzz: ok\n";
}

static void scope()
{
	{
		sf::Ticket t = sf::request_ticket(1); // killed
	}
	{
		sf::Ticket t = sf::request_ticket(2); // joined
		t.join();
	}
	{
		sf::Ticket t = sf::request_ticket(3); // what a clone finds
		t.clone();
	}
}

int main(int argc, char **argv)
{
	std::string mode = argc > 1 ? argv[1] : "";
	int times = argc > 2 ? std::atoi(argv[2]) : 0;
	if (mode == "calls")
		calls();
	else if (mode == "garbage")
		garbage(times);
	else if (mode == "fuzz")
		fuzz(times);
	else if (mode == "scope")
		scope();
	else
		return 2;
	return 0;
}
