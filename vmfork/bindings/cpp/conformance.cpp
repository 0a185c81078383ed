// The conformance program in C++; see ../README.md. Run it in a virtual machine
// that may fork: it prints one line for each step, and the last is "conformance:
// ok". Where something differs it says what and exits with 1.
#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <iostream>
#include <set>
#include <sf.hpp>

static constexpr int patience = 120; // seconds

static sockaddr_in parent; // where the children dial

static void expect(const std::string &step, const std::string &got, const std::string &want)
{
	if (got != want)
		throw std::runtime_error(step + ": got " + got + ", want " + want);
	std::cout << step << ": " << got << std::endl;
}

static void expect_kind(const std::string &step, const std::function<void()> &f, const std::string &want)
{
	std::string got = "ok";
	try {
		f();
	} catch (const sf::Error &e) {
		got = sf::name(e.kind());
	}
	expect(step, got, want);
}

static void must(const char *what, bool done)
{
	if (!done)
		throw std::runtime_error(std::string(what) + " failed");
}

static void be_patient(int fd)
{
	timeval limit = {patience, 0};
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
}

// What a clone does: tells the parent what it saw, and ends when that has arrived.
[[noreturn]] static void child(int id, int saw, int status)
{
	std::string line = "child " + std::to_string(id) + " saw " + std::to_string(saw) + "\n";
	char byte;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	be_patient(fd);
	bool arrived = connect(fd, reinterpret_cast<sockaddr *>(&parent), sizeof parent) == 0 &&
		       write(fd, line.data(), line.size()) == static_cast<ssize_t>(line.size()) &&
		       shutdown(fd, SHUT_WR) == 0 && read(fd, &byte, 1) == 0;
	sf::exit(arrived ? status : 100);
}

// One child's line, without its LF.
static std::string hear(int listener)
{
	pollfd ready = {listener, POLLIN, 0};
	must("waiting for a child", poll(&ready, 1, patience * 1000) == 1);
	int fd = accept(listener, nullptr, nullptr);
	must("accept", fd >= 0);
	be_patient(fd);
	std::string line;
	char byte;
	while (read(fd, &byte, 1) == 1 && byte != '\n')
		line += byte;
	close(fd);
	return line;
}

static std::string text(const std::map<int, int> &statuses)
{
	std::string s;
	for (auto [id, status] : statuses)
		s += (s.empty() ? "" : " ") + std::to_string(id) + ":" + std::to_string(status);
	return s;
}

static void conformance()
{
	volatile int value = 42; // so that the memory is asked, and no register
	sf::Identity me = sf::whoami();
	expect("whoami", "id " + std::to_string(me.id), "id 0");

	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	socklen_t size = sizeof parent;
	parent.sin_family = AF_INET;
	must("bind", bind(listener, reinterpret_cast<sockaddr *>(&parent), sizeof parent) == 0);
	must("listen", listen(listener, 16) == 0);
	must("getsockname", getsockname(listener, reinterpret_cast<sockaddr *>(&parent), &size) == 0);
	must("address", inet_pton(AF_INET, me.ip.c_str(), &parent.sin_addr) == 1);

	{
		sf::Ticket ticket = sf::request_ticket(2);
		std::string ids;
		std::set<std::string> addresses;
		for (const sf::Clone &c : ticket.clones()) {
			ids += " " + std::to_string(c.id);
			addresses.insert(c.ip);
		}
		expect("ticket",
		       "granted " + std::to_string(ticket.granted()) + ", ids" + ids + ", " + std::to_string(addresses.size()) +
			       " addresses",
		       "granted 2, ids 1 2, 2 addresses");
		int id = ticket.clone();
		if (id > 0)
			child(id, value, id);
		std::vector<std::string> lines = {hear(listener), hear(listener)};
		std::sort(lines.begin(), lines.end());
		expect("clone", lines[0], "child 1 saw 42");
		expect("clone", lines[1], "child 2 saw 42");
		expect("join", text(ticket.join(patience)), "1:1 2:2");
		expect_kind("join again", [&] { ticket.join(patience); }, "unknown");
		expect_kind("clone after join", [&] { ticket.clone(); }, "unknown");
	}

	expect_kind("exit in the parent", [] { sf::exit(0); }, "refused");

	{
		sf::Ticket ticket = sf::request_ticket(1);
		if (ticket.clone() > 0)
			for (;;)
				pause();
		expect_kind("kill", [&] { ticket.kill(); }, "ok");
		expect_kind("join after kill", [&] { ticket.join(patience); }, "unknown");
	}

	value = 7;
	sf::Checkpoint checkpoint = sf::checkpoint_parent();
	if (checkpoint.id > 0)
		child(checkpoint.id, value, 0);
	value = 8;
	{
		sf::Ticket ticket = sf::request_ticket(1);
		ticket.create_clones(checkpoint.checkpoint);
		expect("create-clones", hear(listener), "child 1 saw 7");
		expect("join", text(ticket.join(patience)), "1:0");
	}

	sf::discard(checkpoint.checkpoint);
	{
		sf::Ticket ticket = sf::request_ticket(1); // its destructor kills it
		expect_kind("create-clones after discard", [&] { ticket.create_clones(checkpoint.checkpoint); }, "unknown");
	}
	must("keeping the variable", value == 8);
	std::cout << "conformance: ok" << std::endl;
}

int main()
{
	try {
		conformance();
	} catch (const std::exception &e) {
		std::cout << "conformance: " << e.what() << std::endl;
		return 1;
	}
	return 0;
}
